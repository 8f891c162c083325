package http1

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// stream serves a request whose answer is sent while it is being made, and is the last of
// its connection. The connection gives up its buffer, and the answer has one only while
// there is something to send: a stream that waits costs two small stacks.
//
// The client is watched, since the answer may take forever: when it disconnects, the
// context of the request is canceled. What it sends instead is dropped, as the next
// request of a connection that is about to be closed would be.
func (c *conn) stream() outcome {
	c.clear()
	ctx, cancel := context.WithCancel(c.request.http.Context())
	defer cancel()
	_ = c.nc.SetReadDeadline(time.Time{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		defer cancel()
		var b [16]byte
		for {
			if _, err := c.nc.Read(b[:]); err != nil {
				return
			}
		}
	}()
	plain := c.request.http
	c.request.http = plain.WithContext(ctx)
	c.response.streaming, c.response.last = true, true
	complete := c.answer()
	c.request.http = plain
	if complete {
		_ = c.response.flush()
	}
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	<-watched
	return hangUp
}

// FlushError is for http.ResponseController. It sends the header of a stream, and what has
// been written before; from then on, Write sends at once. Other answers are sent as a whole.
func (w *response) FlushError() error {
	if !w.streaming {
		return http.ErrNotSupported
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.begun || w.declared >= 0 || !bodyAllowed(w.status) {
		return nil // nothing is waiting, or finish sends it
	}
	w.begun = true
	w.out = append(w.out, "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"...)
	_, err := w.conn.nc.Write(w.out)
	if err == nil && len(w.body) > 0 {
		_, err = w.writeChunk(w.body)
	}
	w.out, w.body = nil, nil
	return err
}

// writeChunk sends a chunk (RFC 9112, section 7.1), in one system call: net.Buffers would
// take three, because the connection is wrapped. An empty chunk would be the last.
func (w *response) writeChunk(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(p) > maxBodyBytes { // a copy would double what a client that does not read costs
		parts := net.Buffers{append(strconv.AppendInt(nil, int64(len(p)), 16), "\r\n"...), p, []byte("\r\n")}
		if _, err := parts.WriteTo(w.conn.nc); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	b := chunks.Get().(*[]byte)
	out := append(strconv.AppendInt((*b)[:0], int64(len(p)), 16), "\r\n"...)
	out = append(append(out, p...), "\r\n"...)
	_, err := w.conn.nc.Write(out)
	*b = out
	chunks.Put(b)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// chunks has buffers for chunks that are being sent.
var chunks = sync.Pool{New: func() any { return new([]byte) }}
