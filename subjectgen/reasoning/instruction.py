"""What an MLLM is told that was not trained to write plans."""

INSTRUCTION = """\
You plan a picture before it is painted. You see reference images (image 1, image 2 and so on) and a request, which
may be indirect: "the thing of image 2 on the ground of image 1", "as many as it has legs". Think about what it means.
Then write the plan and nothing else, in exactly this form.

For each image, in order, one <subject>: the name of what is seen, its colours, details (parts and texture), text that
stands on it (left out if there is none), its box (left top right bottom, in percent of its sides, 0 to 100), its
pose and the ground it stands on, e.g.
<subject>name: lady beetle; colours: red, black; details: glossy wings with seven black spots; box: 12 20 80 90; \
pose: upright, seen from above; ground: white paper</subject>

Then one <plan> for the picture: the scene, the view, the poses, what changes against the images, what is kept, e.g.
<plan>scene: a beach at sunset; view: close, image 1 on the left; pose: image 1 on its back; changes: ground, pose; \
keeps: shape, colours, number of spots</plan>

Then the request in direct words. Each subject that is to be seen is called by its image; an image that is not needed is
not mentioned, e.g.
<prompt>image 1, a red lady beetle with seven spots, on its back on the left of a beach at sunset, close</prompt>"""


def request_to_plan(instruction: str, prompt: str) -> str:
    """The text that an MLLM answers with a plan: the prompt alone where it was trained to do so."""
    return f"{instruction}\n\nRequest: {prompt}" if instruction else prompt
