"""The Hugging Face hub: its own way of saving and uploading, the model card, and downloads.

Imports huggingface_hub, which takes about a tenth of a second; `pretrained` imports this module when it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from weightformer import checkpoints
from weightformer.checkpoints import CheckpointError
from weightformer.checkpoints.error import one_line
from weightformer.pretrained import Contents
from weightformer.state import State

CARD = """---
{{ card_data }}
---

# WeightFormer{% if architecture %} for {{ architecture }}{% endif %}

A transformer that reads the weights of trained networks of one architecture, an ensemble, and writes the weights of
one network ([Meta-Ensemble Parameter Learning](https://arxiv.org/abs/2210.01973)). This repository holds the
transformer, not a network that it wrote.

| | |
|---|---|
{%- if architecture %}
| architecture of teachers and student | {{ architecture }}{% for name, value in arguments.items() %}, {{ name }} \
{{ value }}{% endfor %} |
{%- endif %}
| predicted | {{ layers }} layers, {{ "{:,}".format(rows) }} rows, {{ "{:,}".format(parameters) }} parameters |
| teachers | {% if config.max_teachers %}up to {{ config.max_teachers }}{% else %}any number{% endif %}\
{% if aligned %}, aligned with a canonical one that is stored here{% endif %} |
| output | {{ config.output }}, from {{ "all teachers'" if config.read == "mean" else "the first teacher's" }} tokens |
| encoder | {{ config.layers }} {{ config.norm }}-norm blocks, width {{ config.width }}, {{ config.heads }} heads, \
feed-forward {{ config.feed_forward }} |
| gate, cross-layer | {{ config.gate }}, {{ config.cross_layer if config.cross_tokens else "none" }} |
{%- if teachers %}

## Teachers

{{ teachers }}
{%- endif %}

## How to load it

```python
{%- if architecture %}
from weightformer import Predictor

predictor = Predictor.from_pretrained("{{ repo_id }}")
student = predictor([first, second, third])  # state dicts of teachers in, a state dict out
{%- else %}
from weightformer import WeightFormer

model = WeightFormer.from_pretrained("{{ repo_id }}")
student = model.predict([first, second, third])  # state dicts of teachers in, a state dict out
{%- endif %}
```

Install with `pip install 'wfkernels[models]'`. Teachers must be of this architecture and solve the task that it was
fitted for.
{%- if calibrated %} Running statistics of the student are re-estimated on images that are stored here.{% endif %}
{%- if metrics %}

## Metrics

As given by who saved this model.

| metric | value |
|---|---|
{%- for name, value in metrics.items() %}
| {{ name }} | {{ value }} |
{%- endfor %}
{%- endif %}

## Licence

{% if license %}The weights: {{ license }}.{% else %}Who saved the weights has not stated their licence.{% endif %} \
The code that reads them, wfkernels: Apache-2.0.

## Citation

```bibtex
@misc{fei2022metaensemble,
  title = {Meta-Ensemble Parameter Learning},
  author = {Fei, Zhengcong and Tian, Shuman and Huang, Junshi and Wei, Xiaoming and Wei, Xiaolin},
  year = {2022},
  eprint = {2210.01973},
  archivePrefix = {arXiv},
}
```

wfkernels is an independent implementation of the method.
"""


class Repository(ModelHubMixin):
    """What the hub's mixin saves and uploads: weight files, the mapping that it writes as config.json, and a card."""

    def __init__(self, files: Mapping[str, State], config: dict[str, Any]) -> None:
        self._files, self._config = files, config

    def _save_pretrained(self, save_directory: Path) -> None:
        for name, state in self._files.items():
            checkpoints.save(state, save_directory / name, overwrite=True)

    def generate_model_card(
        self,
        *,
        teachers: str | None = None,
        metrics: Mapping[str, object] | None = None,
        license: str | None = None,
        repo_id: str = "FOLDER OR REPOSITORY",
    ) -> ModelCard:
        """Return the card: what the model is follows from its description, what it is worth has to be given."""
        about, layers = self._config, self._config["layout"]["layers"]
        extras = {name for state in self._files.values() for name in state}
        card: ModelCard = ModelCard.from_template(
            ModelCardData(
                library_name="wfkernels",
                license=license,
                tags=["weightformer", "meta-ensemble-parameter-learning", "model_hub_mixin"],
            ),
            template_str=CARD,
            architecture=about.get("architecture"),
            arguments=about.get("arguments", {}),
            config=about["config"],
            layers=len(layers),
            rows=sum(layer["rows"] for layer in layers),
            parameters=sum(prod(parameter["shape"]) for layer in layers for parameter in layer["parameters"]),
            aligned="views" in extras,
            calibrated="calibration" in extras,
            teachers=teachers,
            metrics={_cell(name): _cell(value) for name, value in (metrics or {}).items()},
            license=license,
            repo_id=repo_id,
        )
        return card


def _cell(value: object) -> str:
    """Return what can stand in a table of Markdown."""
    return " ".join(str(value).replace("|", "\\|").split())


def save(contents: Contents, folder: Path, **options: Any) -> str | None:
    """Write a folder, and upload it where the options of ModelHubMixin.save_pretrained say so."""
    try:
        return Repository(contents.files, contents.config).save_pretrained(folder, **options)
    except HfHubHTTPError:  # an OSError, but none of this disk
        raise
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {one_line(error)}; choose another folder") from error


def push(contents: Contents, repo_id: str, **options: Any) -> str:
    """Upload to a repository; options as of ModelHubMixin.push_to_hub."""
    return Repository(contents.files, contents.config).push_to_hub(repo_id, **options)


def download(repo_id: str, name: str, **options: Any) -> Path:
    """Return where a file of a repository lies in the cache; options as of hf_hub_download.

    Raises CheckpointError where it cannot be had.
    """
    try:
        return Path(hf_hub_download(repo_id, name, **options))
    except Exception as error:  # names, permissions, proxies, disks: what fails here differs from release to release
        raise CheckpointError(
            f"{repo_id}: is no folder here, and {name} of a repository of that name cannot be had ({one_line(error)});"
            " check the name, the network and the token"
        ) from error
