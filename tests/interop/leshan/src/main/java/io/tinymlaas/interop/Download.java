package io.tinymlaas.interop;

import java.util.function.Consumer;

import org.eclipse.californium.core.CoapClient;
import org.eclipse.californium.core.CoapHandler;
import org.eclipse.californium.core.CoapResponse;
import org.eclipse.californium.core.network.CoapEndpoint;
import org.eclipse.californium.elements.config.Configuration;

/** Pull of a package with Californium's own block-wise client, from a socket of its own. */
final class Download {
    private final Configuration configuration;

    Download(Configuration configuration) {
        this.configuration = configuration;
    }

    /** Fetch all blocks; `done` hears the bytes, `failed` why there are none. */
    void fetch(String uri, Consumer<byte[]> done, Consumer<String> failed) {
        CoapEndpoint endpoint = new CoapEndpoint.Builder().setConfiguration(configuration).build();
        CoapClient client = new CoapClient(uri);
        client.setEndpoint(endpoint);
        client.advanced(new CoapHandler() {
            @Override
            public void onLoad(CoapResponse response) {
                endpoint.destroy();
                if (response.isSuccess()) {
                    done.accept(response.getPayload());
                } else {
                    failed.accept(response.getCode().toString());
                }
            }

            @Override
            public void onError() {
                endpoint.destroy();
                failed.accept("no answer");
            }
        }, org.eclipse.californium.core.coap.Request.newGet());
    }
}
