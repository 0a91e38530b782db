"""Register two scans, or the built-in pair: python register_pair.py [MOVING FIXED OUT]."""

import sys

from napari_shmoareg import RegistrationSettings, load_network, read_pair, register
from napari_shmoareg.io import sample_pair, write_registration

if len(sys.argv) == 4:
    pair, out = read_pair(sys.argv[1], sys.argv[2]), sys.argv[3]
else:
    pair, out = sample_pair().pair, "registered"
result = register(pair, load_network("small"), RegistrationSettings(refine=20))
write_registration(result, out, weights="small")
print(
    f"kept: {result.kept}; {result.folding_percent:.3f} % of the voxels fold; see {out}/report.json"
)
