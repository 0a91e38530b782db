"""How often each convolution was chosen in each label, beside what chance gives."""

from napari_shmoareg import load_network, register
from napari_shmoareg.experts.regions import region_loads
from napari_shmoareg.io import sample_pair

pair = sample_pair().pair
result = register(pair, load_network("small"))
for region in region_loads(result, pair.fixed_labels, part="decoder", layer=1, direction="x"):
    print(
        f"{region.name}: {region.share.round(2)} of {region.tokens:.0f} voxels; "
        f"distance from the whole {region.distance:.3f}, by chance up to {region.expected:.3f}"
    )
