"""Video understanding on your own clips: three folders that name an example alike, and labels.

python -m mtmm_jax.train --config video_folders --workdir runs/video_folders

Under clips/: video_frames/<id>/<i>.jpg, text_data/<id>.txt, audio_data/<id>.wav and labels.csv (id,
class); --config.data.root=... for another place. Ten frames spread over the clip, the words and
the first 5.0 s of sound are read; any file of an example may be missing. With N clips for training
an epoch is N / 32 steps: --config.steps, and --config.evaluation.every and .log_every for once an
epoch. Baseline: each modality alone, which evaluation prints next to it.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("video_understanding")
    config.data = {
        "kind": "video_folder",
        "root": "clips",
        "labels": "labels.csv",
        "options": {
            "video": {"frames": 10, "size": 224},
            "text": {"units": "words"},
            "audio": {"seconds": 5.0},
        },
    }
    config.tasks = {"label": {"kind": "classification"}}
    return config
