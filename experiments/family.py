"""pixtok's own family: one dial, the width of the trunk, sets depth, heads, widths of pixels, batch and learning rate.

pixtok data build SOURCE datasets/images --image_size 224
pixtok info experiments/family.py --dial 768
pixtok train experiments/family.py --dial 768 --data.path datasets/images --run_dir runs/family-768

They share one learning rate: experiments/transfer.py has found it best, to a factor of 2, for trunks 64, 128 and 256
wide and 2, 4 and 8 deep. Training at the sizes of the family: not measured.
"""

from pixtok.config import Checkpoint, Data, Experiment, family, family_train


def config(dial: int = 256, steps: int = 10_000) -> Experiment:
    return Experiment(
        name=f"family-{dial}",
        model=family(dial),
        # One image of 224² with a caption of 56 bytes a row, or several smaller ones.
        data=Data(path="datasets/images", image_size=224, slots=256, windows=196),
        train=family_train(dial, steps),
        checkpoint=Checkpoint(every=1_000),
    )
