"""Images of a suite, drawn into files that say of themselves what they were drawn from."""

import os
from collections.abc import Mapping

from imagen_jax.errors import UserError
from imagen_jax.files import files_under
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import as_info, read_info, write_png


def draw_images(
    cascade: Cascade, folder: str, prompts: Mapping[str, str], *, seed: int, batch_size: int, label: str
) -> None:
    """Draws the images that are not there yet.

    Args:
      cascade: what draws them.
      folder: where they go.
      prompts: of each image, by its path from the folder on; its place in this order and the seed fix its noise.
      seed: of the noise.
      batch_size: images drawn at a time.
      label: what the progress shows.

    Raises:
      UserError: an image is there that was drawn from another prompt, seed, checkpoint or with other settings; before
        anything is drawn.
    """
    told = {
        "checkpoint": [one.checkpoint for one in cascade.stages],
        "sampling": [repr(one.sampling) for one in cascade.stages],
        "config_hash": cascade.config_hash,
    }
    paths = [os.path.join(folder, name) for name in prompts]
    infos = [{"prompt": prompt, "index": i, "seed": seed, **told} for i, prompt in enumerate(prompts.values())]
    there = files_under(folder)
    done = [i for i, name in enumerate(prompts) if name in there]
    other = [i for i in done if read_info(paths[i]) != as_info(infos[i])]
    if other:
        number = "1 image is" if len(other) == 1 else f"{len(other)} images are"
        raise UserError(
            f"{number} there already and drawn otherwise, the first is {paths[other[0]]}; remove {folder} or give "
            "another name"
        )
    missing = sorted(set(range(len(paths))) - set(done))
    if done:
        print(f"{len(done)} of {len(paths)} images are there already")
    if not missing:
        return
    _, request = cascade.job("text", list(prompts.values()), seed=seed)
    for chosen, images in cascade.stream(request, rows=missing, batch_size=batch_size, label=label):
        for i, image in zip(chosen, images[-1], strict=True):
            write_png(paths[i], image, infos[i])
