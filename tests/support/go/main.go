// A registry in memory that has the referrers API, which distribution has not: go-containerregistry's own.
// With two arguments, a certificate and its key, it speaks TLS, and HTTP/2 alone.
package main

import (
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: whole(registry.New(registry.WithReferrersSupport(true)))}
	log.Printf("listening on %s", listener.Addr())
	if len(os.Args) == 3 {
		log.Fatal(serveHTTP2(server, listener, os.Args[1], os.Args[2]))
	}
	log.Fatal(server.Serve(listener))
}

// Blobs of the repository "whole" come whole, whatever range is asked for.
func whole(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		if strings.HasPrefix(request.URL.Path, "/v2/whole/") {
			request.Header.Del("Range")
		}
		handler.ServeHTTP(answer, request)
	})
}

// Who comes with HTTP/1.1 is refused in turns as RFC 7301 demands, in the handshake, and as Go does, by closing the
// connection behind it.
func serveHTTP2(server *http.Server, listener net.Listener, certificate, key string) error {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	var others atomic.Uint32
	strict := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"none"}}
	server.TLSConfig = &tls.Config{
		Certificates: []tls.Certificate{pair},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedProtos, "h2") || others.Add(1)%2 == 0 {
				return nil, nil
			}
			return strict, nil
		},
	}
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP2(true)
	return server.ServeTLS(listener, "", "")
}
