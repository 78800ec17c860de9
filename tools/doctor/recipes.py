"""A recipe: whether it can be read, and whether data, GPUs and recipe go together."""

from tools.doctor.findings import FAULT, OK, WARNING, Finding


def read_recipe(cfg):
    """First the run itself, then the findings."""
    from config.recipe import load_recipe
    from ffcv_ops.errors import UserError

    try:
        run = load_recipe(cfg)
    except UserError as error:
        yield Finding("recipe", FAULT, str(error), "python train_imagenet.py --help")
        return
    yield run
    stages = ", ".join(f"{stage.name} ({stage.resolution} px, batch {stage.batch})" for stage in run.stages)
    yield Finding("recipe", OK, f"{cfg}: {stages}")


def pairs_of(run):
    """The data sets that are trained on with those for their validation."""
    given = ((run.data.train, run.data.val), (run.data.finetune_train, run.data.finetune_val))
    return [pair for pair in given if all(pair)]


def pair_fits(known):
    if "refused" in known:
        yield Finding("train and val", FAULT, known["refused"], "write both in one go (docs/data.md)")
    elif known.get("remark"):
        yield Finding("train and val", WARNING, known["remark"], "docs/data.md, What a run checks")


def recipe_fits(run, known, torch):
    """Whether data, GPUs and recipe go together."""
    gpus = len(torch["gpus"])
    if run.speed.device == "cuda" and not gpus:
        yield Finding("recipe", FAULT, "speed.device is cuda, and torch sees no GPU", "--speed.device=auto")
    for stage in run.stages:
        name = run.data.train if stage.data == "main" else run.data.finetune_train
        samples = known.get(name, {}).get("samples", 0)
        if samples and stage.batch > samples:
            from config import loading  # these samples were counted through ffcv, so what it imports is there

            fix = f"{loading.smaller_batch(stage, samples)}, and a lower --stage.lr"
            yield Finding(f"stage {stage.name}", FAULT, f"batch {stage.batch} is more than {samples} images", fix)
        elif gpus and stage.batch % gpus:
            fix = f"torchrun --nproc-per-node={max(n for n in range(1, gpus + 1) if stage.batch % n == 0)} ..."
            yield Finding(f"stage {stage.name}", WARNING, f"batch {stage.batch} cannot be shared by {gpus} GPUs", fix)
        elif gpus:
            found = f"{stage.batch // gpus} samples of a batch on each of {gpus} GPUs, in pieces that fit"
            yield Finding(f"stage {stage.name}", OK, found)
