#!/usr/bin/env bash
# Makes everything in litgpt/assets again, from the top of the repository. Needs Debian's package manager for the text.
set -euo pipefail
export OMP_NUM_THREADS=1
assets=litgpt/assets
work=$(mktemp -d)

(cd "$work" && apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb unpacked)
python config_hub/demo/extract_text.py "$work/unpacked/usr/lib/R/site-library/janeaustenr/data" $assets/text
python config_hub/demo/make_instructions.py $assets/text/train $assets/instructions
python config_hub/demo/make_tokenizer.py $assets/text/train "$work/tokenizer" 2048

litgpt pretrain --config config_hub/demo/pretrain.yaml --tokenizer_dir "$work/tokenizer" --out_dir "$work/run"
python - "$work/run/final" "$work/bf16" <<'PYTHON'
import sys
from litgpt import LLM

llm = LLM.load(sys.argv[1], distribute=None)
llm.distribute(accelerator="cpu", precision="bf16-true")
llm.save(sys.argv[2])
PYTHON
rm -rf $assets/austen-2m
litgpt convert_from_litgpt "$work/bf16" $assets/austen-2m
rm -r "$work"
