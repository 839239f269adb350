"""A plan as people read it."""

from typing import Any

MIB = 2.0**20


def plan_text(found: dict[str, Any]) -> str:
    """The table of `plan.plan`'s result."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    slices = f" in {found['num_slices']} slices" if found["num_slices"] > 1 else ""
    rows = [
        ("stage", f"{found['stage']}, {found['num_params']:,} parameters"),
        ("devices", f"{found['topology']}: {found['num_devices']} {found['device_kind']}{slices}, {mesh}"),
        (
            "batch",
            f"{found['batch_size']} rows in {found['accumulate_steps']} microbatches of "
            f"{found['per_device_batch']} rows a device",
        ),
        ("state a device", f"{found['state_gib']:.3f} GiB"),
        *([("frozen parameters", f"{found['frozen_gib']:.3f} GiB a device")] if "frozen_gib" in found else []),
        *program_rows(found),
        ("compiled", f"in {found['compile_s']:.0f} s at optimisation level {found['optimization_level']}"),
    ]
    if found.get("sampler"):
        sampler = found["sampler"]
        rows.append(("", ""))
        rows.append(("guided sampling", f"{sampler['images']} images, {sampler['steps']} steps a call"))
        rows += program_rows(sampler)
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name + ':' if name else '':{width}}{value}".rstrip() for name, value in rows)


def program_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Table rows of one program's cost, for the train step and the sampler."""
    peak, limit = found["peak_hbm_gib"], found["hbm_limit_gib"]
    memory = f"peak {peak:.3f} GiB"
    if limit is not None:
        memory += f" of {limit:.2f} GiB" + (f", {limit - peak:.2f} GiB left" if found["fits"] else ": DOES NOT FIT")
    if found.get("host_gib"):
        memory += f"; {found['host_gib']:.3f} GiB of the host's"
    rows = [("memory a device", memory), ("model FLOPs", f"{found['model_flops']:.4g}")]
    if found["hardware_flops"] is None:
        reason = found.get("unreadable")
        return rows + ([("times", f"unknown: the compiler cannot print its program ({reason})")] if reason else [])
    ratio = found["hardware_flops"] / max(found["model_flops"], 1)
    rows += [
        ("hardware FLOPs", f"{found['hardware_flops']:.4g}, {ratio:.2f} times the model's"),
        (
            "HBM traffic",
            f"{found['hbm_bytes'] / MIB:,.1f} MiB a device and step, {found['layout_bytes'] / MIB:,.1f} of it layouts",
        ),
    ]
    for kind, axes in found["collective_bytes"].items():
        rows.append((kind, ", ".join(f"{axis} {size / MIB:,.2f} MiB" for axis, size in axes.items())))
    if found["roofline"] is None:
        return rows + [("times", "none: no published figures for this device")]
    line, times, mfu = found["roofline"], found["step_time_s"], found["roofline_mfu"]
    seconds = ", ".join(f"{name} {1e3 * line[f'{name}_s']:.3g}" for name in ("compute", "hbm", "ici", "dcn"))
    rows += [
        ("roofline in ms", f"{seconds}; bound by {line['bound']}"),
        (
            "time in ms",
            f"{1e3 * times['overlap']:.4g} (all overlaps) to {1e3 * times['no_overlap']:.4g} (nothing does)",
        ),
        ("MFU", f"{mfu['overlap']:.1%} to {mfu['no_overlap']:.1%}"),
    ]
    if found["days"]:
        spent = found["days"]
        rows.append(("days", f"{spent['overlap']:.3g} to {spent['no_overlap']:.3g} for {spent['num_steps']:,} steps"))
    return rows
