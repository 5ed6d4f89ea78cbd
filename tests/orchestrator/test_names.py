"""The metric names are a contract with runs that exist: this is what they were when those were written."""

from orchestrator import names


def test_the_names_of_runs_that_exist() -> None:
    constants = {name for name in vars(names) if name.isupper() and name[0] != "_" and name != "CAUSES"}
    assert {getattr(names, name) for name in constants} == {
        *("train/loss", "train/gradient_norm", "train/learning_rate", "train/epoch", "train/samples"),
        *("train/skipped_steps", "train/skipped_in_a_row", "train/went_back", "train/bad_samples"),
        *("speed/images_per_second", "speed/mfu", "speed/data_wait_fraction", "speed/checkpoint_stall_seconds"),
        *("data/bytes_read", "data/bytes_read_over_used", "data/retries"),
        *("compute/exaflops", "compute/tpuv3_core_days_allocated", "compute/tpuv3_core_days_work"),
        *("compute/mfu", "compute/device_hours"),
        "evaluated_step",
    }
    assert {names.bad_samples(cause) for cause in names.CAUSES} == {
        *("train/bad/empty_image", "train/bad/undecodable_image", "train/bad/absurd_dimensions", "train/bad/no_image"),
        *("train/bad/no_label", "train/bad/unreadable_label", "train/bad/label_outside_the_classes"),
        *("train/bad/several_labels", "train/bad/shard_cut_short", "train/bad/unreadable_shard"),
        *("train/bad/too_many_labels", "train/bad/label_field_too_long", "train/bad/absurd_class_number"),
        *("train/bad/unknown_class_name", "train/bad/image_file_too_long", "train/bad/too_large_to_be_drawn"),
        "train/bad/pixel_values_without_a_range",
    }
    assert names.spike(names.LOSS) == "train/loss_spike"
    assert names.phase_time("data_wait") == "time/data_wait"


def test_a_held_out_set_and_its_metric() -> None:
    assert names.held_out("val") == "eval/val"
    assert names.split_held_out("eval/val/top1") == ("val", "top1")
    assert names.split_held_out(f"{names.averaged('val')}/top1") == ("val", "ema/top1")
    assert names.split_held_out("train/loss") is None
