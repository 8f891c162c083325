package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/kvd-io/kvd/internal/budget"
)

// inputOf returns an empty request of a method.
func inputOf(t testing.TB, method string) proto.Message {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		t.Fatal(err)
	}
	in := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name)).Input()
	m, err := protoregistry.GlobalTypes.FindMessageByName(in.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return m.New().Interface()
}

// echo answers each request with itself.
type echo struct {
	t    testing.TB
	took []proto.Message
}

func (e *echo) Call(_ context.Context, method string, decode func(any) error) (any, error) {
	m := inputOf(e.t, method)
	if err := decode(m); err != nil {
		return nil, err
	}
	e.took = append(e.took, m)
	return m, nil
}

func (e *echo) Stream(method string, s grpc.ServerStream) error {
	for {
		m := inputOf(e.t, method)
		if err := s.RecvMsg(m); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		e.took = append(e.took, m)
		if err := s.SendMsg(m); err != nil {
			return err
		}
	}
}

// inPieces reads a body a few bytes at a time.
type inPieces struct {
	io.Reader
	most int
}

func (p inPieces) Read(b []byte) (int, error) { return p.Reader.Read(b[:min(len(b), p.most)]) }

const fuzzMessageBytes = 4 << 10

// FuzzRequests sends arbitrary bodies to each path of the gateway. The service gets the
// messages that encoding/json and protojson find in the body, in whatever pieces it
// arrives, and none that is too large; and the answer, read as a client does, is what the
// service said.
func FuzzRequests(f *testing.F) {
	paths := slices.Sorted(maps.Keys(calls))
	for i := range paths {
		f.Add(uint8(i), `{"key":"YQ==","range_end":"AA==","revision":"7","limit":1,"nonsense":[{}]} {"ID":"3"}`, uint8(3))
	}
	at := func(path string) uint8 { return uint8(slices.Index(paths, path)) }
	f.Add(at("/v3/watch"), `{"create_request":{"key":"Zm9v","start_revision":"-1","filters":["NOPUT",1]}}{"cancelRequest":{"watch_id":9}} x`, uint8(1))
	f.Add(at("/v3/kv/txn"), `{"compare":[{"target":"VALUE","result":3,"value":"YQ=="}],"success":[{"requestTxn":{"failure":[{"request_put":{}}]}}],"failure":[null]}`, uint8(0))
	f.Add(at("/v3/kv/put"), `{"key":"YQ","value":"_-8","lease":9223372036854775808,"prevKv":1}`, uint8(200))
	f.Add(at("/v3/kv/put"), `{"value":"`+strings.Repeat("AAAA", 1500)+`"}`, uint8(200))
	f.Fuzz(func(t *testing.T, path uint8, body string, most uint8) {
		if int(path) >= len(paths) || len(body) > budget.Free {
			return
		}
		e := &echo{t: t}
		memory := budget.New(1 << 20)
		g := New(Options{Calls: e, Memory: memory, MaxMessage: fuzzMessageBytes})
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest(http.MethodPost, paths[path], inPieces{strings.NewReader(body), int(most) + 1}))
		c := calls[paths[path]]
		want := messagesIn(t, c, body)
		if c.kind == unary {
			want = slices.DeleteFunc(want, func(m proto.Message) bool { return proto.Size(m) > fuzzMessageBytes })
		}
		if !slices.EqualFunc(e.took, want, proto.Equal) {
			t.Fatalf("%s %q: the service got %v, want %v; answered %d %s", paths[path], body, e.took, want, w.Code, w.Body)
		}
		if small, large := memory.Taken(); small+large != 0 {
			t.Fatalf("%d bytes are still claimed", small+large)
		}
		checkAnswer(t, c, e.took, w)
	})
}

// messagesIn reads the messages of a body: the first value of a call with one answer, and
// otherwise all up to the first that is none. Nothing at all is an empty message.
func messagesIn(t *testing.T, c call, body string) (out []proto.Message) {
	dec := json.NewDecoder(strings.NewReader(body))
	for {
		var text json.RawMessage
		err := dec.Decode(&text)
		if err == io.EOF && len(out) == 0 && c.kind != dialogue {
			text, err = json.RawMessage("{}"), nil
		}
		if err != nil {
			return out
		}
		m := inputOf(t, c.method)
		if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, m) != nil {
			return out
		}
		if out = append(out, m); c.kind == unary {
			return out
		}
	}
}

// checkAnswer reads an answer.
func checkAnswer(t *testing.T, c call, took []proto.Message, w *httptest.ResponseRecorder) {
	dec := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	for i := 0; ; i++ {
		var text json.RawMessage
		if err := dec.Decode(&text); err == io.EOF && i >= len(took) {
			return
		} else if err != nil {
			t.Fatalf("answer %d of %d: %v in %q", i, len(took), err, w.Body)
		}
		var line struct {
			Result json.RawMessage
			Error  *failure
		}
		if c.kind != unary {
			if err := json.Unmarshal(text, &line); err != nil {
				t.Fatal(err)
			}
			text = line.Result
		}
		if i == len(took) { // the error at the end
			var e failure
			if c.kind == unary && (json.Unmarshal(text, &e) != nil || e.Code == 0 || w.Code == http.StatusOK) || c.kind != unary && line.Error == nil || w.Code >= 500 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			continue
		}
		m := inputOf(t, c.method)
		if err := protojson.Unmarshal(text, m); err != nil || !proto.Equal(m, took[i]) {
			t.Fatalf("%v is answered as %s, %v", took[i], text, err)
		}
	}
}
