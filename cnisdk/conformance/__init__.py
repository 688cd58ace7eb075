"""A black-box suite for CNI plugins in any language: cases keyed to the specification, run in throw-away hosts."""

from typing import TYPE_CHECKING

from .._lazy import exports

if TYPE_CHECKING:
    from .case import Case as Case
    from .case_run import CaseRun as CaseRun
    from .catalogue import CASES as CASES, select as select
    from .judgement import Broken as Broken, Kind as Kind, Level as Level, NotApplicable as NotApplicable
    from .runner import Outcome as Outcome, Verdict as Verdict, judge as judge
    from .subject import Subject as Subject

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".case_run": "CaseRun",
        ".case": "Case",
        ".judgement": "Broken Kind Level NotApplicable",
        ".catalogue": "CASES select",
        ".runner": "Outcome Verdict judge",
        ".subject": "Subject",
    },
)
