"""Starting an installed WebUI on the CPU with a synthetic checkpoint, and asking it for pictures."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.webui import guard
from tests.webui.trees import Tree

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "test-artefacts"
KEYS = ROOT.parent / "shared" / "data" / "keys" / "checkpoint_sd15.json"


def write_checkpoint(folder: Path) -> Path:
    """An SD1.5 checkpoint of random weights, with text-encoder norms that are not the defaults."""
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found[0]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    buffers = _schedule()
    for name, (shape, dtype) in _shapes().items():
        if name in buffers:
            tensors[name] = buffers[name].clone()
            continue
        if "position_ids" in name:
            tensors[name] = torch.arange(shape[-1]).reshape(shape)
            continue
        value = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            value = (1 if name.endswith("weight") else 0) + 0.1 * value
        else:
            value /= math.sqrt(math.prod(shape[1:]))
        tensors[name] = value.to(getattr(torch, dtype, torch.float16))
    path = folder / "synthetic.safetensors"
    save_file(tensors, str(path))
    return path


def _schedule():
    """The buffers of DDPM's linear noise schedule (Ho et al. 2020), which A1111 takes from the checkpoint."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = 1 - betas
    kept = torch.cumprod(alphas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    variance = betas * (1 - before) / (1 - kept)
    found = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - kept).log(),
        "sqrt_recip_alphas_cumprod": (1 / kept).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - kept),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - kept),
    }
    return {name: value.float() for name, value in found.items()}


def _shapes():
    names = {"F16": "float16", "F32": "float32", "I64": "int64", "BF16": "bfloat16"}
    data = json.loads(KEYS.read_text(encoding="utf-8"))
    return {name: (tuple(shape), names[kind]) for name, (kind, shape) in data.items()}


class Webui:
    """A running WebUI."""

    def __init__(self, folder: Path, python: str, extra=()):
        self.folder, self.tree = folder, Tree.of(folder)
        self.kind = self.tree.name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(os.environ.get("TMPDIR", "/tmp")) / f"lora-merge-{self.kind}.log"
        command = [
            python,
            "launch.py",
            *self.tree.flags,
            "--port",
            str(self.port),
            "--server-name",
            "127.0.0.1",
            *extra,
        ]
        environ = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "PYTHONDONTWRITEBYTECODE": "1",
            "no_proxy": "127.0.0.1",
        }
        environ.pop("PYTHONPATH", None)
        started = time.monotonic()
        with self.log.open("wb") as log:
            self.process = guard.start(command, cwd=folder, stdout=log, stderr=log, env=environ)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        self.seconds = time.monotonic() - started

    def _wait(self):
        # asked any earlier, A1111 ends: its API cannot be added to an application that has answered once
        for _ in range(600):
            said = self.log.read_text(errors="replace")
            if self.process.poll() is not None:
                raise SystemExit(said[-4000:])
            if "Startup time" in said:
                return
            time.sleep(0.5)
        raise SystemExit("the WebUI did not start within five minutes")

    def stop(self):
        guard.stop(self.process)

    def call(self, path, body=None, headers=None, timeout=400):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json", **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, {"said": error.read().decode(errors="replace")[:600]}

    def upscaler(self):
        """One for Hires fix: latents where the WebUI has them, else pixels."""
        _, latent = self.call("/sdapi/v1/latent-upscale-modes")
        _, others = self.call("/sdapi/v1/upscalers")
        known = {item["name"] for item in others}
        names = [*(item["name"] for item in latent), "Lanczos", *sorted(known - {"None"})]
        return next(name for name in names if name in known or name.startswith("Latent"))

    def until(self, name, least, thread):
        """Wait until the generation that a thread asks for is so far, or over.

        So far are `job_no` pictures, or `sampling_step` of one; a busy machine takes minutes for a few.
        """
        while thread.is_alive():
            time.sleep(0.1)
            _, progress = self.call("/sdapi/v1/progress?skip_current_image=true")
            if progress.get("state", {}).get(name, 0) >= least:
                return

    def picture(self, prompt, size=128, steps=4, **more):
        """Float[height width 3] and the infotext of one picture, always of the same seed."""
        from PIL import Image

        body = {
            "prompt": prompt,
            "width": size,
            "height": size,
            "steps": steps,
            "seed": 7,
            "sampler_name": "Euler",
            "cfg_scale": 5,
            **more,
        }
        status, answer = self.call("/sdapi/v1/txt2img", body)
        assert status == 200, f"txt2img answered {status}: {self.log.read_text(errors='replace')[-2000:]}"
        image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")
        return np.asarray(image).astype(float), json.loads(answer["info"])["infotexts"][0]
