"""Speech in, speech units out: everything that runs when somebody talks to the model."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime, in use for speech, would report to its makers
