"""The public part of E5's training data: jsonl files with `query`, `positive`, `negative`.

Names, prompts and sampling ratios are those of the paper (table 8 and appendix G.1).
"""

from collections.abc import Mapping

_WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"
_CHINESE = "Given a Chinese search query, retrieve web passages that answer the question"

E5_PROMPTS: Mapping[str, tuple[str, ...]] = {
    "allnli": (
        "Given a premise, retrieve a hypothesis that is entailed by the premise",
        "Retrieve semantically similar text",
    ),
    "dureader": (_CHINESE,),
    "eli5_question_answer": (
        "Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum",
    ),
    "fever": ("Given a claim, retrieve documents that support or refute the claim",),
    "hotpot_qa": (
        "Given a multi-hop question, retrieve documents that can help answer the question",
    ),
    "miracl": (_WIKIPEDIA,),
    "mrtydi": (_WIKIPEDIA,),
    "msmarco_passage": (
        "Given a web search query, retrieve relevant passages that answer the query",
    ),
    "msmarco_document": (
        "Given a web search query, retrieve relevant documents that answer the query",
    ),
    "nq": (_WIKIPEDIA,),
    "quora_duplicates": (
        "Given a question, retrieve questions that are semantically equivalent to the given "
        "question",
        "Find questions that have the same meaning as the input question",
    ),
    "squad": ("Retrieve Wikipedia passages that answer the question",),
    "t2ranking": (_CHINESE,),
    "trivia_qa": ("Retrieve Wikipedia passages that answer the question",),
}
"""The anchors' prompts by file (paper, table 8); of two prompts, every other row has the second."""

E5_WEIGHTS: Mapping[str, float] = {
    "eli5_question_answer": 0.1,
    "msmarco_document": 0.2,
    "msmarco_passage": 0.5,
    "quora_duplicates": 0.1,
    "t2ranking": 0.5,
}
"""The share of a file's rows that an epoch reads; all rows of the other files."""
