"""The manifests in deploy/kubernetes against Kubernetes' own schemas, which the validator carries."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.test_kubernetes import RESOURCES


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_manifest_fits_its_schema(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, "1.33", strict=True)


def test_a_misspelled_field_is_refused() -> None:
    service = next(one for one in RESOURCES if one["kind"] == "Service")

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**service, "spec": {**service["spec"], "port": 1}}, "1.33", strict=True)
