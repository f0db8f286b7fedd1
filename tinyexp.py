from pixtok.config import *
def config():
    m=Model(encoder=Stream(32,2,2,1),trunk=Stream(128,2,2,1),decoder=Stream(64,2,2,1),fold_factor=64,window=8)
    return Experiment("tiny",m,Data("nowhere",slots=40,windows=32),Train(steps=10,batch_size=4,warmup_steps=1))
