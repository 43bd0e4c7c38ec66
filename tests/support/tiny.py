"""A config of a model that trains within seconds."""

TINY = """\
trainer: {max_steps: 3, val_check_interval: 3, check_val_every_n_epoch: null, log_every_n_steps: 1, accelerator: cpu}
data: {class_path: Digits, init_args: {batch_size: 128, data_range: [0, 1]}}
model:
  process: {class_path: SigmaTable, init_args: {sigma_min: 0.03, sigma_max: 3.0, levels: 3}}
  network: {class_path: UNet, init_args: {channels: 8, multipliers: [1], blocks: 1, attention: [], groups: 4}}
  objective: {class_path: DenoisingScoreMatching, init_args: {times: TableTimes}}
  sampler: {class_path: AnnealedLangevin, init_args: {step_size: 1.35e-4, steps: 2}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
  lr_scheduler: {class_path: LinearLR, init_args: {start_factor: 1.0, end_factor: 0.0, total_iters: max_steps}}
samples: {num_samples: 0}
evaluate: {features: DigitFeatures, num_samples: 20}
"""
