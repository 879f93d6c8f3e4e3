"""Classifies images on all machines of a Ray cluster: python ray_predict.py MODEL FOLDER OUT WORKERS."""

import sys
from pathlib import Path

import ray

from dermrw import Classifier
from dermrw.inference.find_images import find_images

model, folder, out, workers = sys.argv[1:]
images = find_images([Path(folder)]).images
table = ray.data.from_items([{"image": name, "path": str(path.resolve())} for name, path in images.items()])
rows = table.map_batches(
    Classifier,  # each worker loads the model once
    fn_constructor_kwargs={"model": str(Path(model).resolve()), "device": "cpu", "threads": 1},
    batch_size=32,
    concurrency=int(workers),
)
rows.write_csv(str(Path(out).resolve()))
