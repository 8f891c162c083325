package httpapi

import (
	"net/http"
	"time"

	"go.uber.org/zap"
)

// Deadlines and limits of a connection. Each bounds what a slow or hostile
// client can hold.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	// writeTimeout counts from the request's header: the longest timeout a
	// request may ask for and the time to write its answer. Answers that may
	// take longer extend it as they make progress.
	writeTimeout = maxTimeout + time.Minute
	// maxHeaderBytes holds three keys of 4 KiB, each byte percent-encoded,
	// and the ordinary headers.
	maxHeaderBytes = 64 << 10
)

// NewServer returns an http.Server for clients with the deadlines and limits
// that the contract wants: HTTP/1.1, HTTP/2 over TLS and by prior knowledge.
// The caller serves on it and shuts it down. A nil logger discards what
// net/http has to say.
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
		ErrorLog:          zap.NewStdLog(log.Named("http")),
	}
}
