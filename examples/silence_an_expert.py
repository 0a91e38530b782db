"""What depends on an expert: silence it, and as many selections of others for comparison."""

from napari_shmoareg import load_network
from napari_shmoareg.experts.experiment import Experiment
from napari_shmoareg.experts.intervention import Intervention
from napari_shmoareg.io import sample_pair
from napari_shmoareg.registration.replay import Replay

experiment = Experiment(Replay.of(sample_pair().pair, load_network("small")))
change = Intervention("silence", expert=1, part="decoder", layer=2, direction="z")
for name, effect in (
    ("the expert", experiment.run(change)),
    ("as many others", experiment.run(experiment.null(change))),
):
    print(f"{name}: moved {effect.mean_mm:.3f} mm, Dice {effect.mean_dice_change:+.4f}")
