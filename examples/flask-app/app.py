"""A shop with one page: an order is answered at once, and a job writes its receipt."""

import hmac
from datetime import timedelta
from pathlib import Path

from flask import Flask, abort, redirect, request, session

from dbbasic_queue.flask import FlaskHandlers
from dbbasic_queue.web import Access

app = Flask(__name__)
app.config.from_prefixed_env()  # FLASK_SECRET_KEY, FLASK_ADMIN_PASSWORD, FLASK_QUEUE_PATH ...
jobs = FlaskHandlers(keep=timedelta(days=30))


def allow(_):
    """Let someone who has signed in see and change the queue, below /queue."""
    return Access("all", user="admin") if session.get("is_admin") else None


jobs.init_app(app, allow=allow)


@jobs.handler(max_attempts=5)
def write_receipt(order, job):
    """Write the receipt. If that is done twice, the file is the same."""
    file = Path(app.instance_path, "receipts", f"{job.id}.txt")
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"Thank you for your order {job.id}, {order['name']}.\n")
    return file.name


@app.get("/")
def form():
    return '<form method="post">Your name: <input name="name"> <button>Order</button></form>'


@app.post("/")
def order():
    name = request.form["name"].strip()
    if not name:
        abort(400, "Please enter your name.")
    number = write_receipt.enqueue({"name": name})
    return f"Order {number}: your receipt follows.\n"


@app.route("/login", methods=["GET", "POST"])
def login():
    if request.method == "GET":
        return (
            '<form method="post"><input name="password" type="password"><button>Go</button></form>'
        )
    password = app.config.get("ADMIN_PASSWORD")
    if not password or not hmac.compare_digest(str(password), request.form["password"]):
        abort(403)
    session["is_admin"] = True
    return redirect("/queue/")
