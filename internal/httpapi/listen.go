package httpapi

import (
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/httpapi/param"
)

// The deadlines and limits of a connection bound what a slow or hostile client can
// occupy (H5).
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	// writeTimeout begins with the request's header. It is the longest timeout that a
	// request may have, and the time to write its answer. Answers that may take
	// longer extend it while they make progress.
	writeTimeout = param.MaxTimeout + time.Minute
	// maxHeaderBytes has room for three keys of 4 KiB with every byte
	// percent-encoded (a cursor, and two bounds), and for the usual headers.
	maxHeaderBytes = 64 << 10
	// http2Receive is what a client may send over HTTP/2 before a handler reads it.
	// net/http's own bound, a mebibyte for each connection, is more than ten thousand
	// connections may hold.
	http2Receive = 256 << 10
)

// NewServer returns an http.Server for clients, with the deadlines and limits of the
// contract, for HTTP/1.1 and for HTTP/2 over TLS and by prior knowledge. The caller
// serves on it and shuts it down. The logger receives net/http's own messages; nil
// discards them.
func NewServer(h http.Handler, log *zap.Logger) *http.Server {
	if log == nil {
		log = zap.NewNop()
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         &protocols,
		HTTP2:             &http.HTTP2Config{MaxReceiveBufferPerConnection: http2Receive, MaxReceiveBufferPerStream: http2Receive / 2},
		ErrorLog:          zap.NewStdLog(log.Named("http")),
	}
}
