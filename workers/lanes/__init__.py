"""The shells that hold lanes: without Ray, as an actor, and the crew that the driver gives lanes to."""
