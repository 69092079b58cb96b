#!/bin/sh
# huggingface_hub 2.4.0 and 0.36.0, with no server to reach: HfApi.create_repo. Expected: an OSError, or one of huggingface_hub.errors, which is
# what callers catch around it. Seen: 0.36.0 raises requests' ConnectionError, which is an OSError; 2.4.0 raises httpx2.ConnectError, which is
# neither, so that an `except OSError` or `except HfHubHTTPError` lets it through.
# Ends with 0 as long as this is so, with 1 once it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/ask.py" <<'PYTHON'
import sys

import huggingface_hub
from huggingface_hub import errors

try:
    huggingface_hub.HfApi(token="any").create_repo("someone/model")
except Exception as error:
    kinds = {"OSError": isinstance(error, OSError), "HfHubHTTPError": isinstance(error, errors.HfHubHTTPError)}
    print("huggingface_hub", huggingface_hub.__version__, f"{type(error).__module__}.{type(error).__name__}", kinds)
    sys.exit(kinds != {"OSError": sys.argv[1] == "True", "HfHubHTTPError": False})
sys.exit(1)
PYTHON
for case in "0.36.0 True" "2.4.0 False"; do
  set -- $case
  python3 -m venv "$folder/venv-$1"
  "$folder/venv-$1/bin/pip" install --quiet "huggingface_hub==$1"
  HF_ENDPOINT=http://127.0.0.1:9 "$folder/venv-$1/bin/python" "$folder/ask.py" "$2"
done
