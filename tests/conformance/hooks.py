"""What the schema cannot say."""

import schemathesis


@schemathesis.hook
def filter_case(context, case):
    """An empty query parameter is as good as none: it breaks no rule, whatever the type of the parameter."""
    return all(value not in ("", None, [], {}) for value in (case.query or {}).values())
