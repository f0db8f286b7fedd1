"""The unified model, as Linen modules.  Every parameter names its logical axes; `pixtok.sharding` maps them."""
