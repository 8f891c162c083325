package gateway

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var (
	jsonType  = []string{"application/json"}
	unmarshal = protojson.UnmarshalOptions{DiscardUnknown: true}
	options   = protojson.MarshalOptions{UseProtoNames: true}
)

// spaced is set if protojson puts spaces behind commas in this binary. It decides that by a
// hash of the binary, so that nobody relies on the bytes. Clients with simple parsers do.
var spaced = func() bool {
	text, _ := options.Marshal(&pb.ResponseHeader{ClusterId: 1, MemberId: 1})
	return bytes.Contains(text, []byte(", "))
}()

// marshal appends a message, without any spaces.
func marshal(dst []byte, m proto.Message) ([]byte, error) {
	if !spaced {
		return options.MarshalAppend(dst, m)
	}
	text, err := options.Marshal(m)
	if err != nil {
		return dst, err
	}
	out := bytes.NewBuffer(dst)
	err = json.Compact(out, text)
	return out.Bytes(), err
}

// firstValue returns the first JSON value of a body; nil if there is none.
func firstValue(body []byte) (text json.RawMessage, err error) {
	if err = json.NewDecoder(bytes.NewReader(body)).Decode(&text); drained(err) {
		return nil, nil
	}
	return text, err
}

// failure is an error as clients get it.
type failure struct {
	Code    codes.Code `json:"code"`
	Message string     `json:"message"`
	// Error repeats the message, for clients of older gateways.
	Error string `json:"error,omitempty"`
	// The codes once more, in errors of streams.
	GRPCCode codes.Code `json:"grpc_code,omitempty"`
	HTTPCode int        `json:"http_code,omitempty"`
}

// writeError answers with an error (J1).
func writeError(w http.ResponseWriter, s *status.Status) {
	w.Header()["Content-Type"] = jsonType
	if s.Code() == codes.Unauthenticated {
		w.Header().Set("WWW-Authenticate", s.Message())
	}
	w.WriteHeader(statusOf(s.Code()))
	writeJSON(w, &failure{Code: s.Code(), Message: s.Message(), Error: s.Message()})
}

// writeJSON writes a value that has a JSON form, without a newline.
func writeJSON(w io.Writer, v any) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // it is made of strings and numbers
	_, _ = w.Write(bytes.TrimSuffix(out.Bytes(), []byte("\n")))
}

// statuses has the statuses of HTTP for the codes of gRPC. All others are 500.
var statuses = map[codes.Code]int{
	codes.OK:                 http.StatusOK,
	codes.Canceled:           499,
	codes.InvalidArgument:    http.StatusBadRequest,
	codes.DeadlineExceeded:   http.StatusGatewayTimeout,
	codes.NotFound:           http.StatusNotFound,
	codes.AlreadyExists:      http.StatusConflict,
	codes.PermissionDenied:   http.StatusForbidden,
	codes.Unauthenticated:    http.StatusUnauthorized,
	codes.ResourceExhausted:  http.StatusTooManyRequests,
	codes.FailedPrecondition: http.StatusBadRequest,
	codes.Aborted:            http.StatusConflict,
	codes.OutOfRange:         http.StatusBadRequest,
	codes.Unimplemented:      http.StatusNotImplemented,
	codes.Unavailable:        http.StatusServiceUnavailable,
}

func statusOf(c codes.Code) int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}
