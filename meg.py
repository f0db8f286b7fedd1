from pixtok_kernels import topology
topology.tpu("v5e")
from jax.experimental import topologies
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
for c in ("v4:4x4x8","v5p:2x2x1","v5e:2x2","tpu7x:2x2x1"):
  for k in ("megacore","default","megachip","nonsense"):
    try:
        ds=topologies.get_topology_desc(platform="tpu",topology_name=c,chip_config_name=k).devices
        try:
            x=jax.ShapeDtypeStruct((2**16,2**22),jnp.float32,sharding=SingleDeviceSharding(ds[0]))
            jax.jit(lambda x: x+1).lower(x).compile()
        except Exception as e: print(c,k,len(ds),str(e)[-40:])
    except Exception as e: print(c,k,"E",str(e)[:200])
ds=topologies.get_topology_desc(platform="tpu",topology_name="v4:4x4x8",chip_config_name="megacore", num_slices=2).devices
print(len(ds), ds[0].num_cores, ds[200].slice_index)
