package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
)

// tlsFiles is a certificate for all nodes, and what their clients need.
type tlsFiles struct {
	cert, key string
	config    *tls.Config
	web       *http.Client
}

// newTLS lets kvd make a certificate for this machine.
func (b *bench) newTLS(ctx context.Context) (*tlsFiles, error) {
	dir := filepath.Join(b.dir, "certs")
	p := exec.CommandContext(ctx, b.kvdBinary, "cert", "init", "--dir", dir, "--members", "1")
	if text, err := p.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make certificates: %w: %s", err, text)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s has no certificate", dir)
	}
	config := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: config.Clone()}}
	return &tlsFiles{cert: filepath.Join(dir, "member1.pem"), key: filepath.Join(dir, "member1-key.pem"), config: config, web: web}, nil
}

// overTLS repeats puts and gets with 64 clients over TLS.
func overTLS(ctx context.Context, b *bench) error {
	files, err := b.newTLS(ctx)
	if err != nil {
		return err
	}
	var systems []system
	for _, s := range b.systems {
		switch open := s.(type) {
		case *kvd:
			systems = append(systems, &kvd{binary: open.binary, label: open.label, tls: files})
		case *etcd:
			systems = append(systems, &etcd{binary: open.binary, tls: files})
		}
	}
	return b.threeOf(ctx, systems, func(clusters []*cluster) error {
		if err := b.fill(ctx, clusters); err != nil {
			return err
		}
		for _, op := range []operation{opPut, opGet} {
			err := b.alternate(clusters, func(_ int, c *cluster) error {
				s, err := b.load(ctx, c, op, 64, b.keySpace)
				if err == nil {
					b.noteTLS(c.sys.name(), op, s)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bench) noteTLS(system string, op operation, s sample) {
	b.say("%-4s %s over TLS: %.0f/s, p99 %v, %v an operation, errors %v", system, op, s.rate, s.p99, s.cpu, s.errors)
	name := op.rowName() + " over TLS, 64 clients, "
	b.report.row(name+"rate", "1/s", func(w *row) { w.More, w.AtLeast, w.Goal = true, 2, 3 }).add(system, s.rate)
	b.report.row(name+"p99", "ms", nil).add(system, ms(s.p99))
	b.report.row(name+"CPU of all servers", "µs each", nil).add(system, us(s.cpu))
}
