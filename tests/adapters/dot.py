from torch import nn

from engine.dot import DISTILLATION, DOT, TASK

from . import ADAPTERS, Subject

NAMES = {"momentum_task": TASK, "momentum_kd": DISTILLATION}


@ADAPTERS.register("dot")
def dot(case):
    """The parameters lie in two groups."""
    h = case.hyper
    count = sum(name.startswith("param.") for name in case.entry["state"])
    parameters = [nn.Parameter(case.state(f"param.{i}")) for i in range(count)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    optimizer = DOT(groups, h["lr"], h["momentum"], h["weight_decay"], h["delta"])

    def gradient(of, step, i):
        name = f"grad_{of}.{step}.{i}"
        return case[name].detach().clone() if name in case.entry["inputs"] else None

    def call():
        found = {}
        for step in range(1, h["steps"] + 1):
            for of in ("task", "kd"):
                for i, parameter in enumerate(parameters):
                    parameter.grad = gradient(of, step, i)
                if of == "task":
                    optimizer.take_task_gradients()
            optimizer.step()
            after = "after" if step == 1 else f"after_{step}"
            for i, parameter in enumerate(parameters):
                found[f"{after}/param.{i}"] = parameter.detach().clone()
                for name, here in NAMES.items():
                    if here in optimizer.state[parameter]:
                        found[f"{after}/{name}.{i}"] = optimizer.state[parameter][here].clone()
        return found

    return Subject(call)
