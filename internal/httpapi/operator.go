package httpapi

import (
	"bytes"
	"net/http"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/opjson"
)

// The values of Options.RequestLog besides "off".
const (
	RequestLogErrors = "errors"
	RequestLogAll    = "all"
)

// logged reports whether a request that ended with a status, 0 for none, belongs in the
// request log. Errors are what an operator should look at: 5xx, 429, and no answer.
func (x *exchange) logged(status int) bool {
	switch x.srv.opts.RequestLog {
	case RequestLogAll:
		return true
	case RequestLogErrors:
		// A probe is never overloaded: its 429 says that this node is not the leader.
		return isFailure(status) && (status != http.StatusTooManyRequests || !x.route.exempt)
	}
	return false
}

func isFailure(status int) bool {
	return status == 0 || status == http.StatusTooManyRequests || status >= http.StatusInternalServerError
}

// logRequest logs a request that has ended, without anything that a client chose (H6).
func (x *exchange) logRequest(start time.Time) {
	if !x.logged(x.status) {
		return
	}
	level := zapcore.InfoLevel
	if isFailure(x.status) {
		level = zapcore.WarnLevel
	}
	if ce := x.srv.log.Check(level, "request"); ce != nil {
		ce.Write(
			zap.String("request_id", x.requestID()),
			zap.String("method", methodLabel(x.r.Method)),
			zap.String("route", x.route.pattern),
			zap.Int("status", x.status),
			zap.Int64("bytes_in", x.in),
			zap.Int64("bytes_out", x.out),
			zap.Duration("duration", time.Since(start)),
			zap.Bool("led", x.srv.opts.Health.IsLeader()),
			zap.String("remote", x.r.RemoteAddr),
		)
	}
}

// logLevelDoc is the answer of /v1/operator/log-level.
type logLevelDoc struct {
	Level string     `json:"level"`
	Until *time.Time `json:"until,omitempty"`
}

func (s *Server) getLogLevel(x *exchange) error {
	if s.opts.LogLevel == nil {
		return api.Errorf(api.NotFound, "the log level of this node cannot be changed")
	}
	level, until := s.opts.LogLevel.LogLevel()
	doc := logLevelDoc{Level: level}
	if !until.IsZero() {
		doc.Until = &until
	}
	return x.writeJSON(http.StatusOK, doc)
}

// period is a duration in a document: a string ("10m") or a number of seconds.
type period []byte

// UnmarshalJSON implements json.Unmarshaler.
func (p *period) UnmarshalJSON(b []byte) error {
	*p = bytes.Clone(bytes.Trim(b, `"`))
	return nil
}

func (p period) duration() (time.Duration, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return opjson.ParseDuration(string(p))
}

// maxLogPeriod is the longest period after which a level reverts automatically.
const maxLogPeriod = 30 * 24 * time.Hour

// putLogLevel answers PUT /v1/operator/log-level. It concerns this process alone.
func (s *Server) putLogLevel(x *exchange) error {
	if s.opts.LogLevel == nil {
		return api.Errorf(api.NotFound, "the log level of this node cannot be changed")
	}
	var asked struct {
		Level string `json:"level"`
		For   period `json:"for"`
	}
	if err := x.readDocument(&asked); err != nil {
		return err
	}
	d, err := asked.For.duration()
	if err != nil || d < 0 || d > maxLogPeriod {
		return badRequest("the field \"for\" must be a duration (for example, 10m) of at most %v; omit it to change the level indefinitely", maxLogPeriod)
	}
	if err := s.opts.LogLevel.SetLogLevel(asked.Level, d); err != nil {
		return badRequest("the field \"level\": %v", err)
	}
	return s.getLogLevel(x)
}
