import jax, jax.numpy as jnp, time
from pixtok_kernels import topology
from jax.sharding import SingleDeviceSharding
for chip in topology.TPUS:
    d=topology.tpu(chip).devices[0]
    t=time.time()
    try:
        x=jax.ShapeDtypeStruct((2**16,2**22),jnp.float32,sharding=SingleDeviceSharding(d))
        jax.jit(lambda x: x+1).lower(x).compile()
        print(chip,"compiled")
    except Exception as e: print(chip,time.time()-t,type(e),str(e)[:700])
