"""pixtok's own family: one dial, the width of the trunk, sets depth, heads, widths of pixels, batch and learning rate.

pixtok data build SOURCE datasets/images --image_size 224
pixtok info experiments/family.py --dial 768
pixtok train experiments/family.py --dial 768 --data.path datasets/images --run_dir runs/family-768

They are meant to share one learning rate. So far experiments/transfer.py has found the same best one for trunks 64 and
128 wide; training at the sizes of the family: not measured.
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
