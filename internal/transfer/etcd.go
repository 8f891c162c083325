package transfer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// etcdReader reads from etcd's JSON gateway: POST /v3/kv/range, see
// https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/. All pages are of one
// revision.
type etcdReader struct {
	base     string // scheme and host
	http     *http.Client
	timeout  time.Duration // for an answer
	revision int64
	token    string // of a login; empty if there was none
}

const (
	// firstPage and maxEtcdPage are numbers of keys. The page grows while answers are
	// small, because their size is not known before.
	firstPage       = 64
	maxEtcdPage     = 2048
	smallPage       = 512 << 10 // bytes
	largePage       = 4 << 20
	maxEtcdResponse = 256 << 20
)

// ErrUnreachable means that the source did not answer.
var ErrUnreachable = errors.New("source is unreachable")

// FromEtcd reads the keys with a prefix from the etcd whose client URL is base. An
// answer may take as long as the timeout.
func FromEtcd(ctx context.Context, base string, conf *tls.Config, prefix string, timeout time.Duration) (*Source, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf}
	e := &etcdReader{base: base, http: &http.Client{Transport: transport}, timeout: timeout}
	first, _, err := e.page(ctx, prefix, prefix, 1)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", e.base, err)
	}
	e.revision = first.Header.Revision
	return &Source{
		What:  "etcd at " + e.base,
		pairs: func(ctx context.Context) iter.Seq2[Pair, error] { return e.pairs(ctx, prefix) },
		check: func() (int64, error) { return first.Count, nil },
		Close: transport.CloseIdleConnections,
	}, nil
}

// IsEtcdURL reports whether the text can be the client URL of an etcd.
func IsEtcdURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Path == ""
}

// etcdPage is an answer. The gateway writes 64-bit numbers as strings.
type etcdPage struct {
	Header struct {
		Revision int64 `json:"revision,string"`
	} `json:"header"`
	KVs []struct {
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
		Lease string `json:"lease"`
	} `json:"kvs"`
	More  bool  `json:"more"`
	Count int64 `json:"count,string"`
}

func (e *etcdReader) pairs(ctx context.Context, prefix string) iter.Seq2[Pair, error] {
	return func(yield func(Pair, error) bool) {
		start, limit := prefix, firstPage
		for {
			page, size, err := e.page(ctx, start, prefix, limit)
			if err != nil {
				yield(Pair{}, err)
				return
			}
			for _, kv := range page.KVs {
				leased := kv.Lease != "" && kv.Lease != "0"
				if !yield(Pair{string(kv.Key), kv.Value, leased}, nil) {
					return
				}
			}
			if !page.More || len(page.KVs) == 0 {
				return
			}
			start = string(page.KVs[len(page.KVs)-1].Key) + "\x00"
			switch {
			case size < smallPage:
				limit = min(2*limit, maxEtcdPage)
			case size > largePage:
				limit = max(limit/2, 1)
			}
		}
	}
}

// page reads up to limit keys of the prefix from start on, and returns the size of
// the answer.
func (e *etcdReader) page(ctx context.Context, start, prefix string, limit int) (*etcdPage, int, error) {
	query := struct {
		Key      []byte `json:"key"`
		RangeEnd []byte `json:"range_end"`
		Limit    int    `json:"limit,string"`
		Revision int64  `json:"revision,string"`
	}{[]byte(start), []byte(After(prefix)), limit, e.revision}
	// In etcd, a zero byte stands for no bound, because an empty key means none given.
	if len(query.Key) == 0 {
		query.Key = []byte{0}
	}
	if len(query.RangeEnd) == 0 {
		query.RangeEnd = []byte{0}
	}
	body, err := json.Marshal(query)
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	text, err := e.post(ctx, "/v3/kv/range", body)
	if err != nil {
		return nil, 0, err
	}
	page := new(etcdPage)
	if err := json.Unmarshal(text, page); err != nil {
		return nil, 0, fmt.Errorf("the answer is not that of etcd's JSON gateway: %w", err)
	}
	return page, len(text), nil
}

func (e *etcdReader) post(ctx context.Context, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if e.token != "" {
		req.Header.Set("Authorization", e.token)
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; check that an etcd serves clients there", ErrUnreachable, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxEtcdResponse+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxEtcdResponse:
		return nil, fmt.Errorf("an answer has more than %d MiB", maxEtcdResponse>>20)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", resp.Status, etcdMessage(text))
	}
	return text, nil
}

// etcdMessage returns the message in an error of the gateway.
func etcdMessage(text []byte) string {
	var problem struct {
		Message string `json:"message"`
		Error   string `json:"error"`
	}
	if json.Unmarshal(text, &problem) == nil && problem.Message+problem.Error != "" {
		return strings.TrimSpace(problem.Message)
	}
	return strings.TrimSpace(string(text[:min(len(text), 200)]))
}
