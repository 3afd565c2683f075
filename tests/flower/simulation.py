"""Two rounds in Flower's own simulation: `-m tests.flower.simulation NAME`."""

import json
import sys

import jax
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

import fedagg
from fedagg.flower import FedAgg
from tests.flower.deployment import NODES, client_app, first_model

jax.config.update("jax_platforms", "cpu")


def main(name: str) -> None:
    aggregator = {
        "robust": fedagg.robust_aggregator,
        "secure": lambda: fedagg.secure_aggregator(
            largest_cohort=NODES, largest_weight=8.0
        ),
    }[name]()
    server = ServerApp()

    @server.main()
    def _(grid: Grid, context: Context) -> None:
        strategy = FedAgg(
            aggregator,
            plan={"complete": True},
            min_train_nodes=NODES,
            min_available_nodes=NODES,
        )
        result = strategy.start(grid, first_model(), num_rounds=2)
        model = {key: x.numpy().tolist() for key, x in result.arrays.items()}
        print(json.dumps(model), flush=True)

    resources = {"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}}
    run_simulation(server, client_app(aggregator), NODES, backend_config=resources)


if __name__ == "__main__":
    main(sys.argv[1])
