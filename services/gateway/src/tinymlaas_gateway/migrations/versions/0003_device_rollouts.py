"""What a deployment says of its devices moves from its body into rows of their own, and back."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from tinymlaas.gateway.v1 import deployments_pb2

revision = "0003"
down_revision = "0002"

resources = sa.table(
    "gateway_resources",
    *(sa.column(name) for name in ("sequence", "kind", "revision", "body")),
)
rows = sa.table(
    "gateway_device_rollouts",
    *(sa.column(name) for name in ("deployment", "position", "device", "revision", "body")),
)


def upgrade() -> None:
    """Makes the table and fills it."""
    op.create_table(
        "gateway_device_rollouts",
        sa.Column(
            "deployment",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("device", sa.String(400), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("gateway_device_rollouts_by_device", "gateway_device_rollouts", ["deployment", "device"])
    op.create_index("gateway_device_rollouts_by_revision", "gateway_device_rollouts", ["deployment", "revision"])
    for found in _deployments():
        body = deployments_pb2.Deployment.FromString(found.body)
        if not body.rollouts:
            continue
        members = [
            {
                "deployment": found.sequence,
                "position": position,
                "device": item.device,
                "revision": found.revision,
                "body": item.SerializeToString(deterministic=True),
            }
            for position, item in enumerate(body.rollouts)
        ]
        op.bulk_insert(rows, members)
        body.ClearField("rollouts")
        _put(found.sequence, body)


def downgrade() -> None:
    """Puts the rows back into the bodies and drops the table."""
    for found in _deployments():
        body = deployments_pb2.Deployment.FromString(found.body)
        query = sa.select(rows.c.body).where(rows.c.deployment == found.sequence).order_by(rows.c.position)
        for data in op.get_bind().execute(query).scalars().all():
            body.rollouts.add().ParseFromString(data)
        _put(found.sequence, body)
    op.drop_table("gateway_device_rollouts")


def _deployments() -> Sequence[sa.Row[Any, Any, Any]]:
    query = sa.select(resources.c.sequence, resources.c.revision, resources.c.body)
    return op.get_bind().execute(query.where(resources.c.kind == "deployment")).all()


def _put(sequence: int, body: deployments_pb2.Deployment) -> None:
    data = body.SerializeToString(deterministic=True)
    op.get_bind().execute(resources.update().where(resources.c.sequence == sequence).values(body=data))
