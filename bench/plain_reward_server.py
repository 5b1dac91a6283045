"""What `bench/reward_http.py` holds the service against: a FastAPI handler and a model, no more.

    python bench/plain_reward_server.py MODEL PORT

Scores one request at a time, as it comes.
"""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Body(BaseModel):
    """A text to score."""

    text: str


def make(model_path: str) -> FastAPI:
    """The application."""
    api = FastAPI()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_path).eval()

    @api.post("/score")
    async def score(body: Body) -> dict[str, float]:
        encoded = tokenizer(body.text, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            return {"score": float(model(**encoded).logits[0, 0])}

    return api


if __name__ == "__main__":
    uvicorn.run(make(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
