"""`generate_experiment_id`, which names the folders of version 0.2.3's training scripts."""

from typing import Any

_MARKS = {
    "m": str,
    "p": str,
    "b": int,
    "l": int,
    "bidirectional": bool,
    "e": int,
    "s": int,
    "w": int,
    "lr": float,
}


def generate_experiment_id(
    name: str,
    split: str,
    model_name: str | None,
    pooling_mode: str | None,
    train_batch_size: int | None,
    max_seq_length: int | None,
    bidirectional: bool | None,
    epochs: int | None,
    seed: int | None,
    warmup_steps: int | None,
    lr: float | None,
    lora_r: int | None,
) -> str:
    """A name that says how a model was trained, without the parts that are None or of another type.

    Example:
        >>> generate_experiment_id("E5", "train", "m", "mean", 64, 512, True, 3, 42, None, 2e-4, 16)
        'E5_train_m-m_p-mean_b-64_l-512_bidirectional-True_e-3_s-42_lr-0.0002_lora_r-16'
    """
    values: tuple[Any, ...] = (
        model_name,
        pooling_mode,
        train_batch_size,
        max_seq_length,
        bidirectional,
        epochs,
        seed,
    )
    marked = zip(
        {**_MARKS, "lora_r": int}.items(), (*values, warmup_steps, lr, lora_r), strict=True
    )
    parts = [f"{mark}-{value}" for (mark, kind), value in marked if isinstance(value, kind)]
    return "_".join([name, split, *parts])
