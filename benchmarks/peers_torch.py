"""The peers of benchmarks.peers, in an environment of their own: imagen-pytorch, and diffusers with IF's blocks.

A train step draws noise, runs the loss forward and backward and takes a step of Adam. A guided sampling step is two
network evaluations (diffusers: as one batch), dynamic thresholding, and a step of the peer's own scheduler. A whole
sampling is LOOP_STEPS of these; imagen-pytorch runs its own loop.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEXT_LENGTH, TEXT_DIM, SIZE, LOOP_STEPS = 128, 512, 64, 16


def _nothing(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda self, *_, **__: None})


def _imagen_pytorch() -> Any:
    """The package, which asks the Hub for a number when it is imported, and torchvision for what no network uses."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer  # noqa: F401

    # Those three before torchvision: they look for it.
    real = T5Config.from_pretrained
    T5Config.from_pretrained = classmethod(lambda cls, *_, **__: T5Config(d_model=768))
    if importlib.util.find_spec("torchvision") is None:
        empty = types.ModuleType("torchvision")
        empty.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
        sys.modules["torchvision"] = empty
        for part in ("transforms", "utils", "datasets", "models"):
            module = types.ModuleType(f"torchvision.{part}")
            module.__getattr__ = _nothing  # type: ignore[method-assign]
            sys.modules[module.__name__] = module
            setattr(empty, part, module)
    import imagen_pytorch

    T5Config.from_pretrained = real
    return imagen_pytorch


def imagen_pytorch(dim: int, batch: int, mode: str, compiled: bool) -> tuple[Any, Callable, Callable]:
    """(network, one step, one forward pass) of imagen-pytorch's base U-Net."""
    import torch

    package = _imagen_pytorch()
    torch.manual_seed(0)
    network = package.Unet(
        dim=dim, cond_dim=4 * dim, text_embed_dim=TEXT_DIM, max_text_len=TEXT_LENGTH, attn_heads=8, attn_dim_head=64,
        ff_mult=2.0, dim_mults=(1, 2, 3, 4), num_resnet_blocks=1, layer_attns=(False, True, True, True),
        layer_cross_attns=(False, True, True, True), memory_efficient=False,
    )  # fmt: skip
    imagen = package.Imagen(
        (network,),
        image_sizes=(SIZE,),
        text_embed_dim=TEXT_DIM,
        timesteps=LOOP_STEPS if mode == "loop" else 1000,
        cond_drop_prob=0.1,
        pred_objectives="noise",
    )
    network = imagen.unets[0]
    torch.nn.init.normal_(network.final_conv.weight, std=0.02)
    if compiled:
        network.forward = torch.compile(network.forward)
    text = torch.randn(batch, TEXT_LENGTH, TEXT_DIM)
    mask = torch.ones(batch, TEXT_LENGTH, dtype=torch.bool)
    x, time = torch.randn(batch, 3, SIZE, SIZE), torch.full((batch,), 0.5)
    images = torch.rand(batch, 3, SIZE, SIZE)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def forward() -> Any:
        return network(x, time, text_embeds=text, text_mask=mask)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = imagen(images, text_embeds=text, text_masks=mask, unet_number=1)
        loss.backward()
        optimizer.step()
        loss.item()

    @torch.no_grad()
    def sample() -> None:
        drawn, _ = imagen.p_sample(
            network, x, time, t_next=time - 0.001, noise_scheduler=imagen.noise_schedulers[0], text_embeds=text,
            text_mask=mask, cond_scale=5.0, pred_objective="noise", dynamic_threshold=True,
        )  # fmt: skip
        drawn.mean().item()

    @torch.no_grad()
    def loop() -> None:
        drawn = imagen.sample(text_embeds=text, text_masks=mask, cond_scale=5.0, use_tqdm=False)
        drawn.mean().item()

    imagen.train(mode == "train")
    return network, {"train": train, "sample": sample, "loop": loop}[mode], forward


def diffusers(dim: int, batch: int, mode: str, compiled: bool) -> tuple[Any, Callable, Callable]:
    """(network, one step, one forward pass) of diffusers' UNet2DConditionModel, with IF's blocks."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=SIZE, in_channels=3, out_channels=6, block_out_channels=[dim, 2 * dim, 3 * dim, 4 * dim],
        layers_per_block=1, cross_attention_dim=4 * dim, encoder_hid_dim=TEXT_DIM, attention_head_dim=64,
        down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
        up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", addition_embed_type="text", addition_embed_type_num_heads=8,
        cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift", act_fn="gelu",
    )  # fmt: skip
    if compiled:
        network.forward = torch.compile(network.forward)
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", thresholding=True, dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5, variance_type="learned_range",
    )  # fmt: skip
    text = torch.randn(batch, TEXT_LENGTH, TEXT_DIM)
    null = torch.randn(1, TEXT_LENGTH, TEXT_DIM)
    both = torch.cat([null.expand(batch, -1, -1), text])
    x = torch.randn(batch, 3, SIZE, SIZE)
    images = torch.rand(batch, 3, SIZE, SIZE) * 2 - 1
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    if mode != "train":
        scheduler.set_timesteps(LOOP_STEPS if mode == "loop" else 100)
    time = scheduler.timesteps[LOOP_STEPS // 2]

    def forward() -> Any:
        return network(x, time, encoder_hidden_states=text, return_dict=False)[0]

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        noise, times = torch.randn_like(images), torch.randint(0, 1000, (batch,))
        noisy = scheduler.add_noise(images, noise, times)
        chosen = torch.where(torch.rand(batch, 1, 1) < 0.1, null, text)
        output = network(noisy, times, encoder_hidden_states=chosen, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(output[:, :3], noise)
        loss.backward()
        optimizer.step()
        loss.item()

    def guided_step(x: Any, time: Any) -> Any:
        output = network(torch.cat([x, x]), time, encoder_hidden_states=both, return_dict=False)[0]
        (null_eps, _), (eps, variance) = (half.split(3, 1) for half in output.chunk(2))
        guided = torch.cat([null_eps + 5.0 * (eps - null_eps), variance], 1)
        return scheduler.step(guided, time, x, return_dict=False)[0]

    @torch.no_grad()
    def sample() -> None:
        guided_step(x, time).mean().item()

    @torch.no_grad()
    def loop() -> None:
        drawn = torch.randn_like(x)
        for one in scheduler.timesteps:
            drawn = guided_step(drawn, one)
        drawn.mean().item()

    network.train(mode == "train")
    return network, {"train": train, "sample": sample, "loop": loop}[mode], forward


def describe(peer: str, network: Any, forward: Callable) -> dict[str, Any]:
    """Parameters, and FLOPs of a forward pass: two per multiply-add of matmuls and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    usual = None
    if peer == "diffusers":
        # Its fused attention is not counted; the plain one does the same.
        from diffusers.models.attention_processor import AttnAddedKVProcessor

        usual = network.attn_processors
        network.set_attn_processor(AttnAddedKVProcessor())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    if usual is not None:
        network.set_attn_processor(usual)
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"params": params, "flops": counter.get_total_flops(), "torch": torch.__version__}


def main() -> None:
    peer, mode, dim, batch, dtype, device, threads, compiled, what = sys.argv[1:]
    import torch

    torch.set_num_threads(int(threads))
    torch.set_default_device(device)
    build = imagen_pytorch if peer == "imagen-pytorch" else diffusers
    network, step, forward = build(int(dim), int(batch), mode, what == "serve" and compiled == "compiled")
    if dtype != "float32":
        step = torch.autocast(device, getattr(torch, dtype))(step)
    if what == "describe":
        print(json.dumps(describe(peer, network, forward)))
        return
    from benchmarks import turns

    turns.serve(step)


if __name__ == "__main__":
    main()
