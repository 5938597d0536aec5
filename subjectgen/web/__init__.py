"""The web page: references, prompt, stages and seeds in; pictures, and why they look so, out."""
