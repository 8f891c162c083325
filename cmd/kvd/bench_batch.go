package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/loadgen"
)

const (
	// batchTimeout is far longer than the largest batch worth measuring takes.
	batchTimeout = 5 * time.Minute
	prepareLines = 1000
)

// batcher writes keys with POST /v1/batch on one connection.
type batcher struct {
	client http.Client
	target string
	header http.Header // of each request
	keys   *loadgen.Keys
	value  []byte
}

// newBatcher makes a client with one connection, as each worker of the other
// loads has. net/http's default transport keeps only two idle connections to a
// host: more workers than that would connect anew for each batch.
func (o *benchOptions) newBatcher(address string, keys *loadgen.Keys, value []byte) *batcher {
	header := http.Header{"Content-Type": {"application/x-ndjson"}}
	if o.credentials != "" {
		header.Set("Authorization", o.credentials)
	}
	return &batcher{client: http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}, target: "http://" + address + "/v1/batch",
		header: header, keys: keys, value: value}
}

func (b *batcher) close() { b.client.CloseIdleConnections() }

// post sends the lines of a batch and reads their responses meanwhile. It
// returns the code of the first response that is an error.
func (b *batcher) post(ctx context.Context, lines int) (code string, err error) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	body := &batchBody{from: b, left: lines, closed: make(chan struct{})}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.target, body)
	if err != nil {
		return "", err
	}
	req.Header = b.header.Clone() // the transport may still read that of the last request
	// The transport may go on reading the body after the response has ended; the
	// keys and the value must not be used again before it closes the body.
	defer func() { cancel(); <-body.closed }()
	resp, err := b.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return batchRefusal(resp)
	}
	return batchAnswers(resp.Body, lines)
}

// batchRefusal returns the code of a batch that was refused as a whole.
func batchRefusal(resp *http.Response) (string, error) {
	document, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return "", err
	}
	var problem struct {
		Code string `json:"code"`
	}
	if json.Unmarshal(document, &problem) != nil || problem.Code == "" {
		return strconv.Itoa(resp.StatusCode), nil
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, problem.Code), nil
}

// batchAnswers reads the responses, one per line.
func batchAnswers(r io.Reader, lines int) (code string, err error) {
	answers, seen := bufio.NewScanner(r), 0
	for ; answers.Scan(); seen++ {
		// Not decoded unless it failed: decoding each line would be the load.
		if line := answers.Bytes(); code == "" && !bytes.Contains(line, []byte(`"status":20`)) {
			code = batchCode(line)
		}
	}
	if err := answers.Err(); err != nil {
		return "", err
	}
	if code == "" && seen != lines { // a stream that was cut short has no error of its own
		code = "responses missing"
	}
	return code, nil
}

// batchCode returns the code of a response line.
func batchCode(line []byte) string {
	var answer struct {
		Status int    `json:"status"`
		Code   string `json:"code"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return "unreadable response"
	}
	return fmt.Sprintf("%d %s", answer.Status, answer.Code)
}

// batchBody makes the lines while they are sent: a batch takes the memory of one
// line.
type batchBody struct {
	from   *batcher
	left   int    // lines still to make
	line   []byte // the current line; its memory is reused
	unread []byte // the rest of line
	once   sync.Once
	closed chan struct{} // closed by Close; post waits for it
}

// Read implements io.Reader. The transport calls it from a goroutine of its own.
func (b *batchBody) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(b.unread) == 0 {
			if b.left == 0 {
				return n, io.EOF
			}
			b.left--
			b.next()
		}
		moved := copy(p[n:], b.unread)
		b.unread, n = b.unread[moved:], n+moved
	}
	return n, nil
}

// next makes the next line in place of the last one, which has been read.
func (b *batchBody) next() {
	line := append(append(b.line[:0], `{"put":{"key":"`...), b.from.keys.Next()...)
	line = append(append(append(line, `","value":"`...), b.from.value...), "\"}}\n"...)
	b.line, b.unread = line, line
}

// Close implements io.Closer. The transport may call it more than once.
func (b *batchBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// prepareKeys writes every key once.
func (o *benchOptions) prepareKeys(ctx context.Context) error {
	b := o.newBatcher(o.endpoints[0], loadgen.SequentialKeys(o.keySpace, 0, 1), bytes.Repeat([]byte("v"), o.valueSize))
	defer b.close()
	for left := o.keySpace; left > 0; {
		lines := min(left, prepareLines)
		code, err := b.post(ctx, int(lines))
		if err == nil && code != "" {
			err = errors.New("the node returned " + code)
		}
		if err != nil {
			return err
		}
		left -= lines
	}
	return nil
}
