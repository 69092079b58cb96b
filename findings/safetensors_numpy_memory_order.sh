#!/bin/sh
# safetensors 0.8.0, NumPy 2.4.0: save_file of an array that is not C-contiguous (a transposed view, Fortran order) writes its bytes in
# memory order under its own shape. Expected: the array, or an error. Seen: no error, and load_file gives another array:
#   [[0, 1, 2], [3, 4, 5]] in Fortran order comes back as [[0, 3, 1], [4, 2, 5]].
# np.ascontiguousarray before saving serves. Ends with 0 as long as this is so, with 1 once it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

plain = np.arange(6, dtype=np.float32).reshape(2, 3)
arrays = {"c": plain, "fortran": np.asfortranarray(plain), "transposed": plain.T}
save_file(arrays, "x.safetensors")
back = load_file("x.safetensors")
same = {name: bool(np.array_equal(back[name], array)) for name, array in arrays.items()}
print("safetensors", safetensors.__version__, same, back["fortran"].tolist())
sys.exit(same != {"c": True, "fortran": False, "transposed": False} or back["fortran"].tolist() != [[0, 3, 1], [4, 2, 5]])
PYTHON
