"""Attention heads (encoder) and convolutions (decoder) that a location chose, as in Fig. 6."""

from napari_shmoareg import load_network, register
from napari_shmoareg.experts.location import read_location
from napari_shmoareg.io import sample_pair

pair = sample_pair().pair
result = register(pair, load_network("small"))
location = read_location(result, pair.fixed.grid.centre)  # mm, RAS
for cell in location.select(part="encoder"):
    probabilities = [round(cell.values[head], 4) for head in cell.experts]
    print(f"{cell.gate}: heads {cell.experts}, probabilities {probabilities}")
for cell in location.select(part="decoder"):
    print(f"{cell.gate}: expert {cell.experts[0]}, margin to the next {cell.margin:.3f}")
