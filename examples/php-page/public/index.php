<?php
// A page that adds a job for each order, and shows what has become of it.

const PLACE = __DIR__ . '/..';  // the queue isn't in the directory that the web server serves

/** Run a command of the queue; return what it has printed, or null if it failed. */
function queue(string ...$arguments): ?string {
    $command = [PLACE . '/.venv/bin/dbbasic-queue', '--file', PLACE . '/data/queue.tsv', ...$arguments];
    $process = proc_open($command, [1 => ['pipe', 'w']], $pipes);
    $output = trim(stream_get_contents($pipes[1]));
    return proc_close($process) === 0 ? $output : null;
}

header('Content-Type: text/html; charset=utf-8');

if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $name = trim($_POST['name'] ?? '');
    if ($name === '') {
        http_response_code(400);
        exit("Please enter your name.\n");
    }
    $order = queue('enqueue', 'receipt', json_encode(['name' => $name], JSON_THROW_ON_ERROR));
    if ($order === null) {
        http_response_code(500);
        exit("Your order could not be saved. Please try again.\n");
    }
    exit("Order <a href=\"?order=$order\">$order</a>: your receipt follows.\n");
}

if (preg_match('/^[0-9a-f]{16}$/D', $_GET['order'] ?? '')) {
    $job = json_decode(queue('show', $_GET['order'], '--json') ?? 'null', true);
    exit($job === null ? "There is no such order.\n" : "The receipt is {$job['status']}.\n");
}
?>
<form method="post">Your name: <input name="name"> <button>Order</button></form>
