<?php
// Write the receipt of an order. The job's payload comes on stdin; what is printed is its result.

set_exception_handler(function (Throwable $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(1);  // tried again later
});

$number = getenv('DBBASIC_QUEUE_JOB_ID');
$order = json_decode(stream_get_contents(STDIN), true, flags: JSON_THROW_ON_ERROR);
$file = __DIR__ . "/data/receipt-$number.txt";
file_put_contents($file, "Thank you for your order $number, {$order['name']}.\n");
echo json_encode(['bytes' => filesize($file)]);
