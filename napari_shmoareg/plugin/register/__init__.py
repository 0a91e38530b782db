"""The Register panel: registers two layers and adds the result to the viewer."""
