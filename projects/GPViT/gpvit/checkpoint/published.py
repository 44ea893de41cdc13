"""The published files: their kinds, and the names of their tensors there and here.

A table has their name of every tensor, and ours: "#" stands for a number, "*" for the last part of a name, "#+2" for
the number plus two. The first line that matches decides.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from ..utils.errors import preview
from ..utils.text import shown
from . import describe
from .describe import Architecture, architecture_of, size_name

COCO_CLASSES = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]

GROUP_BLOCKS = {1, 4, 7, 10}  # of all published sizes

Names = dict[str, str]

BACKBONE: Names = {
    "pos_embed": "pos_embed",
    "patch_embed.stem.0.*": "patch_embed.stem.*",
    "patch_embed.stem.1.*": "patch_embed.stem.norm.*",
    "patch_embed.convs.0.*": "patch_embed.convs.0.*",
    "patch_embed.convs.1.*": "patch_embed.convs.0.norm.*",
    "patch_embed.convs.3.*": "patch_embed.convs.1.*",
    "patch_embed.convs.4.*": "patch_embed.convs.1.norm.*",
    "patch_embed.projection.*": "patch_embed.projection.*",
    # Window blocks.
    "layers.#.norm1.*": "blocks.#.norm1.*",
    "layers.#.qkv.*": "blocks.#.attn.qkv.*",
    "layers.#.attns.0.get_v.*": "blocks.#.attn.lepe_vertical.*",
    "layers.#.attns.1.get_v.*": "blocks.#.attn.lepe_horizontal.*",
    "layers.#.proj.*": "blocks.#.attn.proj.*",
    "layers.#.norm2.*": "blocks.#.norm2.*",
    "layers.#.ffn.layers.0.0.*": "blocks.#.mlp.fc1.*",
    "layers.#.ffn.layers.1.*": "blocks.#.mlp.fc2.*",
    # Group propagation blocks; what both kinds of blocks have must be told apart on the way back.
    **{f"layers.{i}.dwconv.0.*": f"blocks.{i}.conv.*" for i in GROUP_BLOCKS},
    "layers.#.dw.*": "blocks.#.conv.*",
    "layers.#.group_token": "blocks.#.group_token",
    "layers.#.group_layer.norm_query.*": "blocks.#.group.norm_query.*",
    "layers.#.group_layer.norm_key.*": "blocks.#.group.norm_key.*",
    "layers.#.group_layer.attn.k_proj.*": "blocks.#.group.key.*",
    "layers.#.mixer.layers.0.norm1.*": "blocks.#.mixer.norm1.*",
    "layers.#.mixer.layers.0.patch_mixer.0.*": "blocks.#.mixer.token_mlp.fc1.*",
    "layers.#.mixer.layers.0.patch_mixer.3.*": "blocks.#.mixer.token_mlp.fc2.*",
    "layers.#.mixer.layers.0.norm2.*": "blocks.#.mixer.norm2.*",
    "layers.#.mixer.layers.0.channel_mixer.0.*": "blocks.#.mixer.channel_mlp.fc1.*",
    "layers.#.mixer.layers.0.channel_mixer.3.*": "blocks.#.mixer.channel_mlp.fc2.*",
    "layers.#.un_group_layer.norm_query.*": "blocks.#.ungroup.norm_query.*",
    "layers.#.un_group_layer.norm_key.*": "blocks.#.ungroup.norm_key.*",
    "layers.#.un_group_layer.attn.q_proj.*": "blocks.#.ungroup.query.*",
    "layers.#.un_group_layer.attn.k_proj.*": "blocks.#.ungroup.key.*",
    "layers.#.un_group_layer.attn.v_proj.*": "blocks.#.ungroup.value.*",
    "layers.#.un_group_layer.attn.proj.*": "blocks.#.ungroup.out.*",
    "layers.#.un_group_layer.proj.*": "blocks.#.ungroup.join.*",
    "layers.#.un_group_layer.norm2.*": "blocks.#.ungroup.norm2.*",
    "layers.#.un_group_layer.ffn.layers.0.0.*": "blocks.#.ungroup.mlp.fc1.*",
    "layers.#.un_group_layer.ffn.layers.1.*": "blocks.#.ungroup.mlp.fc2.*",
    "layers.#.dwconv.1.*": "blocks.#.conv.norm.*",
    # The norms of the maps that leave the network.
    "ln1.*": "out_norms.last_feat.*",
    "norm#.*": "out_norms.block#.*",
}


def _attention(theirs: str, ours: str) -> Names:
    return {
        f"{theirs}.query_norm.*": f"{ours}.norm_query.*",
        f"{theirs}.feat_norm.*": f"{ours}.norm_feature.*",
        f"{theirs}.attn.sampling_offsets.*": f"{ours}.attn.offsets.*",
        f"{theirs}.attn.attention_weights.*": f"{ours}.attn.weights.*",
        f"{theirs}.attn.value_proj.*": f"{ours}.attn.value.*",
        f"{theirs}.attn.output_proj.*": f"{ours}.attn.out.*",
    }


def _extractor(theirs: str, ours: str) -> Names:
    return _attention(theirs, ours) | {
        f"{theirs}.ffn_norm.*": f"{ours}.norm_ffn.*",
        f"{theirs}.ffn.fc1.*": f"{ours}.ffn.fc1.*",
        f"{theirs}.ffn.dwconv.dwconv.*": f"{ours}.ffn.conv.*",
        f"{theirs}.ffn.fc2.*": f"{ours}.ffn.fc2.*",
    }


ADAPTER: Names = {
    "level_embed": "level_embed",
    "spm.stem.0.*": "spatial_prior.stem.0.*",
    "spm.stem.1.*": "spatial_prior.stem.0.norm.*",
    "spm.stem.3.*": "spatial_prior.stem.1.*",
    "spm.stem.4.*": "spatial_prior.stem.1.norm.*",
    "spm.stem.6.*": "spatial_prior.stem.2.*",
    "spm.stem.7.*": "spatial_prior.stem.2.norm.*",
    "spm.conv#.0.*": "spatial_prior.convs.#-2.*",
    "spm.conv#.1.*": "spatial_prior.convs.#-2.norm.*",
    "spm.fc1.*": "spatial_prior.projection4.*",
    "spm.fc#.*": "spatial_prior.projections.#-2.*",
    "interactions.#.injector.gamma": "injectors.#.gamma",
    **_attention("interactions.#.injector", "injectors.#"),
    **_extractor("interactions.3.extra_extractors.#", "extractors.#+4"),
    **_extractor("interactions.#.extractor", "extractors.#"),
    "up.*": "up.*",
    "ad_norm#.*": "norms.f#+1.*",
}


def _below(theirs: str, ours: str, names: Names) -> Names:
    return {theirs + their_name: ours + our_name for their_name, our_name in names.items()}


def _pyramid(first_level: int) -> Names:
    return {
        "neck.lateral_convs.#.conv.*": f"backbone.fpn_lateral#+{first_level}.*",
        "neck.lateral_convs.#.bn.*": f"backbone.fpn_lateral#+{first_level}.norm.*",
        "neck.fpn_convs.#.conv.*": f"backbone.fpn_output#+{first_level}.*",
        "neck.fpn_convs.#.bn.*": f"backbone.fpn_output#+{first_level}.norm.*",
    }


WITH_ADAPTER: Names = _below("backbone.", "backbone.bottom_up.", ADAPTER) | _below(
    "backbone.", "backbone.bottom_up.net.", BACKBONE
)

MASK_RCNN: Names = {
    **WITH_ADAPTER,
    **_pyramid(first_level=2),
    "rpn_head.rpn_conv.*": "proposal_generator.rpn_head.conv.*",
    "rpn_head.rpn_cls.*": "proposal_generator.rpn_head.objectness_logits.*",
    "rpn_head.rpn_reg.*": "proposal_generator.rpn_head.anchor_deltas.*",
    "roi_head.bbox_head.shared_convs.#.conv.*": "roi_heads.box_head.conv#+1.*",
    "roi_head.bbox_head.shared_convs.#.bn.*": "roi_heads.box_head.conv#+1.norm.*",
    "roi_head.bbox_head.shared_fcs.#.*": "roi_heads.box_head.fc#+1.*",
    "roi_head.bbox_head.fc_cls.*": "roi_heads.box_predictor.cls_score.*",
    "roi_head.bbox_head.fc_reg.*": "roi_heads.box_predictor.bbox_pred.*",
    "roi_head.mask_head.convs.#.conv.*": "roi_heads.mask_head.mask_fcn#+1.*",
    "roi_head.mask_head.upsample.*": "roi_heads.mask_head.deconv.*",
    "roi_head.mask_head.conv_logits.*": "roi_heads.mask_head.predictor.*",
}

RETINANET: Names = {
    **WITH_ADAPTER,
    "neck.fpn_convs.3.conv.*": "backbone.top_block.p6.*",
    "neck.fpn_convs.3.bn.*": "backbone.top_block.p6.norm.*",
    "neck.fpn_convs.4.conv.*": "backbone.top_block.p7.*",
    "neck.fpn_convs.4.bn.*": "backbone.top_block.p7.norm.*",
    **_pyramid(first_level=3),
    **{  # a ReLU stands behind each convolution, in the same list
        f"bbox_head.{theirs}_convs.{i}.conv.*": f"head.{ours}_subnet.{2 * i}.*"
        for theirs, ours in (("cls", "cls"), ("reg", "bbox"))
        for i in range(4)
    },
    "bbox_head.retina_cls.*": "head.cls_score.*",
    "bbox_head.retina_reg.*": "head.bbox_pred.*",
}


@dataclass(frozen=True)
class Kind:
    """A kind of published model.

    Attributes:
        name: as messages call it.
        mark: how names begin that files of this kind have, and no others.
        names: the table of its tensors; of detectors, all of the model's, else the backbone's.
        architecture: of a detector, all of which is used; None where that is the backbone alone.
        dropped: how the names of those tensors begin that have no place in a detector.
        config: name of the config of configs/published that a file of this kind is for, by its size; "" where there is none.
    """

    name: str
    mark: str
    names: Names
    architecture: Architecture | None = None
    dropped: tuple[str, ...] = ()
    config: str = ""

    @property
    def is_detector(self) -> bool:
        return self.architecture is not None


_BACKBONE_OF_OTHERS = _below("backbone.", "", BACKBONE)
KINDS = (
    Kind("Mask R-CNN", "roi_head.", MASK_RCNN, describe.MASK_RCNN, config="mask_rcnn_gpvit_{}_1x"),
    Kind("RetinaNet", "bbox_head.", RETINANET, describe.RETINANET, config="retinanet_gpvit_{}_1x"),
    Kind(
        "semantic segmentation model",
        "decode_head.",
        _BACKBONE_OF_OTHERS,
        None,
        ("decode_head.", "auxiliary_head."),
    ),
    Kind("ImageNet classifier", "head.fc.", _BACKBONE_OF_OTHERS, None, ("neck.", "head.")),
)


def kind_of(state_dict: Mapping[str, Tensor]) -> Kind:
    """What a published file holds. Raises a ValueError where it is none of :data:`KINDS`."""
    kind = _kind(state_dict)
    if kind is None:
        raise ValueError(f"it is no published GPViT model; it holds {preview(list(state_dict))}")
    return kind


def _kind(state_dict: Mapping[str, Tensor]) -> Kind | None:
    return next(
        (kind for kind in KINDS if any(key.startswith(kind.mark) for key in state_dict)), None
    )


def converted(state_dict: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Published tensors under this project's names, without those that have no place here.

    Raises:
        ValueError: a name that this kind of model does not have.
    """
    kept = {key: tensor for key, tensor in state_dict.items() if not key.startswith(kind.dropped)}
    return _reorder_anchors(rename(kept, kind.names, what=kind.name))


def from_published(state_dict: Mapping[str, Tensor], part: str = "backbone") -> dict[str, Tensor]:
    """A part of a published model under this project's names.

    Args:
        state_dict: of a published detector, segmentation model, classifier or backbone, whose names may begin with
            ``backbone.`` or not.
        part: "backbone", for :class:`gpvit.GPViT`.

    Raises:
        ValueError: there is no such part, or a name that a model of this kind does not have; names of its other parts are
            known, and left out.
    """
    if part != "backbone":
        raise ValueError(f'part must be "backbone", got {shown(part)}')
    kind = _kind(state_dict)
    if kind is not None and kind.is_detector:
        ours = "backbone.bottom_up.net."
        weights = converted(state_dict, kind)
        return {
            key.removeprefix(ours): tensor
            for key, tensor in weights.items()
            if key.startswith(ours)
        }
    kept = {
        key: tensor
        for key, tensor in state_dict.items()
        if kind is None or not key.startswith(kind.dropped)
    }
    prefix = "backbone." if any(key.startswith("backbone.") for key in kept) else ""
    names = _below(prefix, "", BACKBONE)
    if kind is None:  # the backbone of a detector may come with its adapter
        names |= _below(prefix, "adapter.", ADAPTER)
    weights = rename(kept, names, what=kind.name if kind else "GPViT backbone")
    return {key: tensor for key, tensor in weights.items() if not key.startswith("adapter.")}


def classes_of(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[str] | None:
    """The class names in a published detector's file; COCO's where it names none and has as many."""
    outputs = {
        "roi_head.bbox_head.fc_reg.weight": 4,
        "bbox_head.retina_cls.weight": 9,
    }  # for each class
    counts = {len(t) // outputs[key] for key, t in state_dict.items() if key in outputs and t.ndim}
    named = meta.get("CLASSES")
    if (
        isinstance(named, (list, tuple))
        and counts == {len(named)}
        and all(isinstance(name, str) for name in named)
    ):
        return list(named)
    return COCO_CLASSES if counts == {len(COCO_CLASSES)} else None


def to_published(weights: Mapping[str, Tensor], classes: Sequence[str] | None) -> dict[str, Any]:
    """A detector's weights in the layout of the published files, for use with the published code.

    Raises:
        ValueError: there is no such published detector, for example with a simple feature pyramid.
    """
    architecture = architecture_of(weights)
    kind = next(
        (kind for kind in KINDS if kind.is_detector and kind.architecture is architecture), None
    )
    if kind is None or "backbone.bottom_up.level_embed" not in weights:
        raise ValueError(
            "only Mask R-CNN and RetinaNet with the adapter have a counterpart in the published code"
        )
    groups = {
        int(match[1])
        for match in map(re.compile(r".*\.blocks\.(\d+)\.group_token").fullmatch, weights)
        if match
    }
    if groups != GROUP_BLOCKS or not size_name(weights):
        raise ValueError("its GPViT is none of the published sizes")
    state_dict = rename(_reorder_anchors(weights), kind.names, inverse=True)
    for key in [
        key for key in state_dict if key.endswith("running_var")
    ]:  # frozen batch norm does not count its steps
        state_dict.setdefault(key.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return {"meta": {"CLASSES": tuple(classes)} if classes else {}, "state_dict": state_dict}


def rename(
    tensors: Mapping[str, Tensor], names: Names, *, inverse: bool = False, what: str = "GPViT"
) -> dict[str, Tensor]:
    """Tensors under our names, or under theirs if ``inverse``. Raises a ValueError, about ``what``, on an unknown name."""
    rules = [(ours, theirs) if inverse else (theirs, ours) for theirs, ours in names.items()]
    compiled = [(_pattern(source), _offsets(source), target) for source, target in rules]
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        matches = (
            (pattern.fullmatch(name), offsets, target) for pattern, offsets, target in compiled
        )
        candidates = (
            _fill(target, match.groups(), offsets) for match, offsets, target in matches if match
        )
        new_name = next(filter(None, candidates), None)
        if new_name is None or new_name in renamed:
            unknown.append(name)
        else:
            renamed[new_name] = tensor
    if unknown:
        raise ValueError(f"a published {what} has no {preview(unknown)}")
    return renamed


_PLACEHOLDER = re.compile(r"#([+-]\d)?|\*")


def _pattern(template: str) -> re.Pattern[str]:
    literals = [re.escape(part) for part in _PLACEHOLDER.sub("\0", template).split("\0")]
    groups = [
        r"(\w+)" if match[0] == "*" else r"(\d+)" for match in _PLACEHOLDER.finditer(template)
    ]
    return re.compile("".join(part for pair in zip(literals, [*groups, ""]) for part in pair))


def _offsets(template: str) -> list[int]:
    return [int(match[1] or 0) for match in _PLACEHOLDER.finditer(template)]


def _fill(template: str, values: Sequence[str], offsets: Sequence[int]) -> str | None:
    """The template with the values of another one's placeholders; None where a number would be negative."""
    parts = [
        value if not value.isdecimal() else str(int(value) - theirs + ours)
        for value, theirs, ours in zip(values, offsets, _offsets(template))
    ]
    if any(part.startswith("-") for part in parts):
        return None
    remaining = iter(parts)
    return _PLACEHOLDER.sub(lambda _: next(remaining), template)


def _reorder_anchors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Exchanges the orders of RetinaNet's nine anchors per cell: by ratio, then size (theirs), and the reverse (ours)."""

    def swap(tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) % 9:
            return tensor  # which will not fit
        return tensor.unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)

    prefixes = ("head.cls_score.", "head.bbox_pred.")
    return {
        name: swap(tensor) if name.startswith(prefixes) else tensor
        for name, tensor in weights.items()
    }
