"""The colors of pages and pictures: name -> (on light paper, on dark). A page's style has them as variables."""

COLORS = {
    "paper": ("#ffffff", "#12161c"),
    "ink": ("#1b2430", "#e4e9ef"),
    "soft": ("#5d6876", "#97a3b1"),
    "rule": ("#dfe4ea", "#2b333d"),
    "tint": ("#f4f6f9", "#1a2029"),
    "bad": ("#a6301f", "#f0907f"),
    "bad-tint": ("#fcefec", "#2a1a18"),
    # of lines, by their kind
    "main": ("#1f5fa8", "#6fabf0"),
    "second": ("#c2571a", "#f0955a"),
    "published": ("#7c8794", "#8c98a6"),
    # of lines, by the number of their run in a comparison
    "run1": ("#1f5fa8", "#6fabf0"),
    "run2": ("#c2571a", "#f0955a"),
    "run3": ("#2f7d4f", "#6cc48f"),
    "run4": ("#8a3f9a", "#c98bd8"),
    "run5": ("#b8860b", "#e0b84c"),
    "run6": ("#0f7f8c", "#5bc4d0"),
    "run7": ("#b0305c", "#ef87ab"),
    "run8": ("#5c6470", "#a3adba"),
}
RUNS = 8  # colors for runs; more runs than that share them
